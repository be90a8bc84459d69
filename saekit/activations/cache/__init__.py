"""Activations kept on disk: the file, writing it, and training from it."""
