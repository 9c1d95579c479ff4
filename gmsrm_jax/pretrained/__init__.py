"""Networks with ImageNet weights, and the files they come in."""
