"""What can go wrong, and the exit code each kind ends with.

A message names what is wrong, where, how often, and the remedy. `podium.config` prints it as one line and
exits with the code; nothing else in the project catches these.
"""

from collections.abc import Iterable


class PodiumError(Exception):
    """A failure the user can act on. Exit code 6: provider or runtime."""

    exit_code = 6


class ArgumentError(PodiumError):
    """A command-line argument or override is wrong."""

    exit_code = 2


class PrerequisiteError(PodiumError):
    """A package, device or credential that this run needs is not there."""

    exit_code = 3


class MissingFileError(PodiumError):
    """A file or folder that this run reads does not exist."""

    exit_code = 4


class DataError(PodiumError):
    """A table, checkpoint or configuration file has invalid content."""

    exit_code = 5


class InterruptedRun(PodiumError):
    """The run was asked to stop and has saved its state; the same command resumes it."""

    exit_code = 75


def sample(values: Iterable[object], limit: int = 5) -> str:
    """The first `limit` values and how many there are, e.g. `'7', '9' (2 in all)`."""
    listed = list(values)
    shown = ", ".join(repr(v) for v in listed[:limit])
    more = ", ..." if len(listed) > limit else ""
    return f"{shown}{more} ({len(listed)} in all)"
