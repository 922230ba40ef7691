"""Which stages of a workflow are made anew, although they have been done: `workflows/<id>/RETRIES.json`.

Such a stage has a folder of its own, `<fingerprint>.<workflow>-<how many times>`, and so a HEAD, attempts and a record
of its own. Its identity is the same. What was in the folder that all workflows share stays there for all others.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable

from pydantic import Field

from cluster.errors import check_format
from cluster.storage import Conflict, NotFound, Storage
from pipeline.identity import stage_folder
from stages.config import Config
from stages.context import sha256

FORMAT = 1


class Retries(Config):
    """How many times each stage has been asked to be made anew, by its name in the workflow."""

    format: int = FORMAT
    stages: dict[str, int] = Field(default_factory=dict)
    nonce: str = ""

    def folder(self, workflow_id: str, name: str, kind: str, print_: str) -> str:
        """Key prefix of a stage's folder; `print_` is its fingerprint."""
        shared, times = stage_folder(kind, print_), self.stages.get(name, 0)
        return f"{shared}.{sha256(workflow_id.encode())[:8]}-{times}" if times else shared


def times_anew(folder: str) -> int:
    """How many times the workflow whose stage's folder this is has had it made anew; 0 for one that all share."""
    _, point, own = folder.rpartition("/")[2].partition(".")
    return int(own.rpartition("-")[2]) if point else 0


def read_retries(storage: Storage, workflow_id: str) -> Retries:
    """What has been asked for; nothing where the document is not there. Raises UserError for a newer format."""
    return _read(storage, workflow_id)[0]


def make_anew(storage: Storage, workflow_id: str, names: Iterable[str]) -> Retries:
    """Have these stages made once more, from the next driver on."""
    names, key = list(names), _key(workflow_id)
    while True:
        old, tag = _read(storage, workflow_id)
        counted = {**old.stages, **{name: old.stages.get(name, 0) + 1 for name in names}}
        new = Retries(stages=counted, nonce=secrets.token_hex(8))
        body = new.model_dump_json().encode()
        try:
            if tag is None:
                storage.write_if_absent(key, body)
            else:
                storage.compare_and_swap(key, body, tag)
        except Conflict:
            continue
        return new


def _read(storage: Storage, workflow_id: str) -> tuple[Retries, str | None]:
    key = _key(workflow_id)
    try:
        body, tag = storage.read_tagged(key)
    except NotFound:
        return Retries(), None
    document = json.loads(body)
    check_format(document["format"], FORMAT, key)
    return Retries.model_validate(document), tag


def _key(workflow_id: str) -> str:
    return f"workflows/{workflow_id}/RETRIES.json"
