"""Judging a backend against the reference."""
