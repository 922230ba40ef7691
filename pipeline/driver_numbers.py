"""Numbers of a workflow's drivers: `workflows/<id>/drivers/<number>`, each taken once, and what is said with it."""

from __future__ import annotations

import secrets

from cluster.storage import Conflict, NotFound, Storage
from pipeline.driver import newest_driver

UNSUPERVISED = b" unsupervised"
"""End of the note of a driver that whoever submitted it sees to."""


def take_next(storage: Storage, workflow_id: str, after: int | None, *, supervised: bool) -> int | None:
    """The number after this one, or None where somebody else has it."""
    number = 0 if after is None else after + 1
    try:
        _claim(storage, workflow_id, number, supervised=supervised)
    except Conflict:
        return None
    return number


def take_number(storage: Storage, workflow_id: str, *, supervised: bool = True) -> int:
    """The next driver's number, which nobody else takes."""
    newest = newest_driver(storage, workflow_id)
    number = 0 if newest is None else newest + 1
    while True:
        try:
            _claim(storage, workflow_id, number, supervised=supervised)
        except Conflict:
            number += 1
        else:
            return number


def is_supervised(storage: Storage, workflow_id: str, number: int) -> bool:
    """Whether a supervisor is to go on where this driver is lost."""
    try:
        return not storage.read(_key(workflow_id, number)).endswith(UNSUPERVISED)
    except NotFound:
        return True


def _claim(storage: Storage, workflow_id: str, number: int, *, supervised: bool) -> None:
    # Its own words, so that no other process takes them for its own after a lost answer.
    note = secrets.token_hex(8).encode() + (b"" if supervised else UNSUPERVISED)
    storage.write_if_absent(_key(workflow_id, number), note)


def _key(workflow_id: str, number: int) -> str:
    return f"workflows/{workflow_id}/drivers/{number:04d}"
