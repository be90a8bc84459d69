"""Results as tables and paragraphs for a terminal."""
