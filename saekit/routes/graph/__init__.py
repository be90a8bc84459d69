"""A circuit as an attribution graph that other viewers open."""
