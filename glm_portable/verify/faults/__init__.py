"""Faults that are put into a backend on purpose, to see whether the suite notices each."""
