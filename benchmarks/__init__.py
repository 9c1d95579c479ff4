"""What measures speed; no part of the package and of no test's time."""
