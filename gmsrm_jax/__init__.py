"""GM-SRM in JAX: image inpainting guided by a generative memory.

Importing the package imports no JAX, so that `run.py` can choose the back end first.
"""

__version__ = "0.1.0"
