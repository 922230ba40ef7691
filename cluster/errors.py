"""Errors that a user can mend, as opposed to what a machine did."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user can mend: the message says the value, what was expected and the next move.

    Never retried. Raised anywhere, shown as one line by the command line (exit code 2), and carried
    from a worker to the runner as a value, so that it never looks like a dead worker.
    """


def nearest(word: object, known: Iterable[str]) -> str:
    """`; did you mean 'known'?` where a word looks like a slip of the keyboard for one that is known, else nothing."""
    near = difflib.get_close_matches(str(word), list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def check_format(found: int, newest: int, where: str) -> None:
    """Refuse a stored document of a newer format than this version knows. Raises UserError."""
    if found > newest:
        raise UserError(f"{where} has format {found}; this version reads up to {newest}: install a newer patchline")
