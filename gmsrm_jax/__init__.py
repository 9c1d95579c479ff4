"""GM-SRM in JAX: image inpainting guided by a generative memory.

Importing the package imports no JAX, so that `run.py` can choose the back end first; `gmsrm_jax.Inpainter` is imported
when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from gmsrm_jax.inference.inpainter import Inpainter

__version__ = "0.1.0"
__all__ = ["Inpainter", "__version__"]


def __getattr__(name: str) -> Any:
  """Imports the public interface lazily."""
  if name == "Inpainter":
    from gmsrm_jax.inference.inpainter import Inpainter

    return Inpainter
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
