"""What storage has of a stage: its HEAD, its record, and the manifest of what came out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.storage import NotFound, Storage
from pipeline.head import HeadDocument, read_head
from pipeline.record import Record, read_note, read_record, recorded_output
from pipeline.status import StageStatus
from stages.context import Output


@dataclass(frozen=True, kw_only=True)
class Found:
    """What storage has of one stage."""

    status: StageStatus
    head: HeadDocument | None = None
    record: Record | None = None
    output: Output | None = None
    placement: Mapping[str, Any] = field(default_factory=dict)
    """As the newest attempt had it."""
    builds: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, storage: Storage, status: StageStatus) -> Found:
        found = read_head(storage, status.folder) if status.folder is not None else None
        if found is None:
            return cls(status=status)
        head = found[0]
        record, output = _recorded(storage, head) if status.outcome in ("done", "reused") else (None, None)
        note = record
        if note is None and head.attempt:
            note = read_note(storage, f"{status.folder}/attempts/{head.attempt}")
        told = {"placement": note.placement, "builds": note.builds} if note is not None else {}
        return cls(status=status, head=head, record=record, output=output, **told)

    @property
    def kind(self) -> str:
        return self.record.kind if self.record is not None else ""


def _recorded(storage: Storage, head: HeadDocument) -> tuple[Record | None, Output | None]:
    try:
        record = read_record(storage, head.record) if head.record is not None else None
    except NotFound:
        return None, None
    return record, recorded_output(storage, record) if record is not None else None
