"""Trains, evaluates and applies GM-SRM: `python run.py --experiment=paris --platform=tpu`.

Without any flag it trains and evaluates the small demo on whatever is here. The same command again resumes.
"""

import sys

from gmsrm_jax.commands import main

if __name__ == "__main__":
  sys.exit(main())
