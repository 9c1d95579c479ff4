"""What measures speed: run by hand as `python -m benchmarks.NAME`, never inside a timed test."""
