"""The same networks, losses and optimisers in plain PyTorch, written from the design, not translated line by line.

First a check: with the same weights and the same input every intermediate of `gmsrm_jax` must come out the same
(`tests/benchmarks/test_torch_twin.py`). Then the peer for speed (`benchmarks/speed/beside_torch.py`): NCHW tensors in
channels_last memory, cuDNN's and oneDNN's convolutions, fused Adam, autocast on a GPU, eager or `torch.compile`.
Settings are those of `gmsrm_jax.config`; no module here imports JAX.

Letters in signatures as in `gmsrm_jax.arrays`; images are `b c h w` in [-1, 1], masks 1 in the hole.
"""
