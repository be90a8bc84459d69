"""Dictionaries of other libraries: read them into saekit's form, and write saekit's for them."""
