"""A fuzz of the three interfaces: shell, Python, HTTP."""
