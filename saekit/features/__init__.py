"""The features of dictionaries: where they are active, what they do, and what they are called."""
