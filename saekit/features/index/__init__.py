"""The feature index: built from text by one pass, read without torch."""
