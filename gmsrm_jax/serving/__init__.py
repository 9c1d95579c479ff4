"""The web page and the HTTP endpoint."""
