"""Dictionaries on disk: SAELens folders, and the set of all layers with its manifest."""
