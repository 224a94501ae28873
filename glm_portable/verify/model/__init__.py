"""A whole model on a backend against the reference."""
