"""The cases run on a backend, and written down for those without this program."""
