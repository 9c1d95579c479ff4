"""Speed: beside PyTorch, of single pieces, and of large photos."""
