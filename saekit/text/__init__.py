"""Text: files, data sets and generated English, packed into rows of token ids."""
