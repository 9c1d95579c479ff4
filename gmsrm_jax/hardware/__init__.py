"""Measures and predicts speed: the benchmark mode, and what the TPU compiler says."""
