"""What supervisors remember of a workflow, in storage: `workflows/<id>/SUPERVISE.json`, changed by compare-and-swap.

Whoever puts a lost driver's number there is the one to submit the next driver; so of several supervisors one does, and
one that is started again goes on counting.
"""

from __future__ import annotations

import json
import secrets

from pydantic import Field

from cluster.errors import check_format
from cluster.storage import Conflict, NotFound, Storage
from stages.config import Config

FORMAT = 1


class Note(Config):
    """The last re-submission of a workflow."""

    format: int = FORMAT
    nonce: str = Field(default_factory=lambda: secrets.token_hex(8), description="no two bodies are ever equal")
    lost: int = Field(description="number of the driver that was lost; the next one is the supervisor's")
    tries: int = Field(description="re-submissions since the workflow last got on")
    progress: tuple[int, int, int] = Field(description="how far it had got: see `pipeline.losses.progress`")
    address: str = Field(description="job server of the cluster that the next driver goes to")
    given_up: bool = Field(False, description="whether the budget was spent, and no driver was submitted")


def read_note(storage: Storage, workflow: str) -> tuple[Note, str] | None:
    """The note and its tag, or None where no driver was ever lost. Raises UserError for a newer format."""
    try:
        body, tag = storage.read_tagged(_key(workflow))
    except NotFound:
        return None
    document = json.loads(body)
    check_format(document["format"], FORMAT, _key(workflow))
    return Note.model_validate(document), tag


def claim(storage: Storage, workflow: str, note: Note, tag: str | None) -> bool:
    """Put a note in the place of the one with this tag, or of none; False where somebody else was faster."""
    body = note.model_dump_json().encode()
    try:
        if tag is None:
            storage.write_if_absent(_key(workflow), body)
        else:
            storage.compare_and_swap(_key(workflow), body, tag)
    except Conflict:
        return False
    return True


def spent(note: Note | None, lost: int, reached: tuple[int, int, int]) -> int:
    """How much of its budget a workflow has spent that has now lost the driver of this number.

    Nothing where it has got on since, or where somebody resumed it: then the driver is not the supervisor's.
    """
    if note is None:
        return 0
    if note.lost == lost:
        # Whoever put it there submitted none.
        return note.tries
    ours = lost == note.lost + 1 and not note.given_up
    return note.tries if ours and reached <= note.progress else 0


def _key(workflow: str) -> str:
    return f"workflows/{workflow}/SUPERVISE.json"
