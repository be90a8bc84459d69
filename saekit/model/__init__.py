"""A language model: opened, described, and run exactly on one prompt."""
