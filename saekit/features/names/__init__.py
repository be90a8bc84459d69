"""Names of features, by rules or by a labeller, and how well each name holds on other text."""
