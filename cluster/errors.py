"""Errors that a user can mend, as opposed to what a machine did."""


class UserError(ValueError):
    """Something the user can mend: the message says the value, what was expected and the next move.

    Never retried. Raised anywhere, shown as one line by the command line (exit code 2), and carried
    from a worker to the runner as a value, so that it never looks like a dead worker.
    """


def check_format(found: int, newest: int, where: str) -> None:
    """Refuse a stored document of a newer format than this version knows. Raises UserError."""
    if found > newest:
        raise UserError(f"{where} has format {found}; this version reads up to {newest}: install a newer patchline")
