"""Computes in a machine's own way what is faster so than in XLA's; never needed."""
