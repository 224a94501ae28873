"""Machines that are not here: each module says what it proves, and what it does not."""
