"""Dictionaries (sparse autoencoders): encode, decode, train, measure, store, exchange."""
