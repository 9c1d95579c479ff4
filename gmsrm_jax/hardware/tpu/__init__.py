"""Compiles the training steps for TPU slices without a TPU."""
