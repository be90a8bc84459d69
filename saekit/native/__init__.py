"""C++ for this processor: compiled on first use, called with tensors."""
