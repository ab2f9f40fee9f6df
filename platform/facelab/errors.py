"""The one exception that a user can mend: jobs turn it into a single line and exit code 2."""


class UsageError(Exception):
    """Unusable arguments or input. The message says what, where, and how to mend it, in one line."""
