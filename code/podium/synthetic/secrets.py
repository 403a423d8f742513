"""API keys: read from the environment, and kept out of everything that is printed or stored.

Vendors echo keys in error bodies, so every text from outside passes `scrub` before it reaches a file or a message.
"""

import os
import re

from podium.errors import PrerequisiteError

_seen: set[str] = set()


def read_key(variable: str | None) -> str:
    """The key in an environment variable; a server of one's own may need none.

    Raises:
        PrerequisiteError: the variable is not set, or this is no variable's name.
    """
    if variable is None:
        return "none"
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable):
        # not quoted: somebody may have put the key itself there
        raise PrerequisiteError("endpoint.api_key_env must be the name of an environment variable, never a key")
    value = os.environ.get(variable, "").strip()
    if not value:
        raise PrerequisiteError(f"environment variable {variable} is not set; export the API key under that name")
    _seen.add(value)
    return value


def scrub(text: str) -> str:
    """The text without any key that `read_key` has handed out, nor any piece of nine letters of one (vendors mask the middle only)."""
    for value in sorted(_seen, key=len, reverse=True):
        text = text.replace(value, "[key]")
        if len(value) >= 16:
            for start in range(0, len(value) - 8):
                text = text.replace(value[start : start + 9], "[key]")
    return text
