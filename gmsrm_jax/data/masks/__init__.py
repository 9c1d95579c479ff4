"""Holes: drawn, read from files, and fixed for held-out images."""
