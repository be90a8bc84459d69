"""A traced circuit as a picture (SVG, PNG), a document (JSON) and a page (HTML).

Nothing here imports torch: everything drawn is read from the `Circuit` document.
"""
