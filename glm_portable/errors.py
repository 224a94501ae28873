"""The one exception a user meets: one sentence with what is wrong, which value, and what to do."""


class UsageError(ValueError):
    """Bad input from outside (a file, a flag, a request). The command line turns it into exit code 2."""
