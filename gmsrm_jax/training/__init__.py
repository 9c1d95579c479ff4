"""Both stages: losses, steps, state, checkpoints, and the loop that runs them."""
