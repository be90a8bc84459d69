"""Named concepts: found by evidence on held-out text, with the layers at which they are there."""
