"""Measurements of speed, quality and reliability that only we run, by hand: `python -m benchmarks.ROOM.NAME`."""
