"""The one exception whose message is meant for the user, not for a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user asked for cannot be done.

    The message names the key, the value and what is allowed; the command line prints it as it is
    and exits with status 2.
    """


def nearest(name: str, allowed: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the closest of `allowed`, or "" if none is close."""
    close = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
