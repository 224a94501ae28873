"""The one exception a user meets: one sentence with what is wrong, which value, and what to do."""


class UsageError(ValueError):
    """Bad input from outside (a file, a flag, a request); exit code 2 on the command line."""
