"""One file per mode of `run.py`."""
