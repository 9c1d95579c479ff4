"""Fills photographs of any size with trained weights."""
