"""Errors that a user can mend, as opposed to what a machine did."""


class UserError(ValueError):
    """Something the user can mend: the message says the value, what was expected and the next move.

    Never retried. Raised anywhere, shown as one line by the command line (exit code 2), and carried
    from a worker to the runner as a value, so that it never looks like a dead worker.
    """
