"""The one exception that a user can mend: jobs turn it into a single line and exit code 2."""


class UsageError(Exception):
    """Unusable arguments or input. The message says what, where, and how to mend it, in one line."""

    def __init__(self, message: str):
        super().__init__(one_line(message))  # it may quote the name of a file


class StoreError(UsageError):
    """A store that cannot be reached or written: may pass, so a Ray worker that meets it is restarted."""


class CheckFailed(UsageError):
    """What a job was told to make sure of is not so: exit code 1, as of a test that fails."""


class Untracked(UsageError):
    """MLflow cannot be reached, or does not let us in, which may pass."""


class Occupied(UsageError):
    """Another job is writing there, which may end."""


class Agreed(UsageError):
    """One that every worker of a training raises alike, so that none is left waiting for the others."""


def one_line(text: str) -> str:
    """Without line breaks and what else cannot be printed: names may come from anywhere."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())
