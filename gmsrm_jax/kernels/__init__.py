"""What a machine computes faster in its own way than in XLA's; never needed."""
