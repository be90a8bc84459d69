"""Training the dictionaries of all layers at once."""
