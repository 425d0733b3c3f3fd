"""Ray shells around the core. `from actors import connect` is the way in for Python drivers."""
