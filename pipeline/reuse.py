"""Whether a stage has been done already: questions without side effects, asked by the runner and by `plan`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cluster.storage import NotFound, Storage
from pipeline.config import Workflow
from pipeline.head import read_head
from pipeline.identity import determining, identity
from pipeline.record import Record, read_record, recorded_output
from stages.config import StageConfig
from stages.context import Output


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A stage that is done, by this workflow or an earlier one."""

    fingerprint: str
    output: Output
    record: Record
    folder: str
    reused: bool


def identify(workflow: Workflow, name: str, inputs: dict[str, str]) -> dict[str, Any]:
    """The identity of a stage in its workflow, given its inputs' fingerprints by field."""
    config = workflow.stages[name]
    seeded = config.model_copy(update={"seed": workflow.seed_of(name)})
    return identity(seeded, inputs)


def reusable(storage: Storage, folder: str, config: StageConfig, digests: dict[str, str]) -> Finished | None:
    """The finished stage in `folder`, if it is done, from inputs with these digests, and where `config` wants it."""
    head = read_head(storage, folder)
    if head is None or head[0].state != "done" or head[0].record is None:
        return None
    return finished(storage, folder, head[0].record, config, digests)


def finished(storage: Storage, folder: str, key: str, config: StageConfig, digests: dict[str, str]) -> Finished | None:
    """What a record says, if its output is still there, where `config` wants it, and its inputs had these digests."""
    try:
        record = read_record(storage, key)
    except NotFound:
        # Removed since HEAD was read.
        return None
    output = recorded_output(storage, record)
    recorded = {field: item.digest for field, item in record.inputs.items()}
    if output is None or determining(config, recorded) != determining(config, digests):
        return None
    if not config.is_in_place(storage, output):
        return None
    return Finished(fingerprint=record.fingerprint, output=output, record=record, folder=folder, reused=True)
