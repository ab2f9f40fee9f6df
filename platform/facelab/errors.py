"""The one exception that a user can mend: jobs turn it into a single line and exit code 2."""


class UsageError(Exception):
    """Unusable arguments or input. The message says what, where, and how to mend it, in one line."""


class StoreError(UsageError):
    """A store that cannot be reached or written: may pass, so a Ray worker that meets it is restarted."""
