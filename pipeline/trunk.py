"""The checkpoint that a branch begins with, as long as its trunk keeps it."""

from __future__ import annotations

from cluster.errors import UserError
from cluster.storage import Storage
from pipeline.head import read_head
from stages.config import StageConfig


def trunk_checkpoint(storage: Storage, config: StageConfig, folder: str) -> str:
    """Key prefix of the checkpoint that a branch begins with; `folder` is its trunk's.

    Raises UserError where the trunk does not keep it, with the updates that it does keep.
    """
    assert config.begins_at is not None, "it is a branch"
    field, update = config.begins_at
    found = read_head(storage, folder)
    kept = found[0].checkpoints if found is not None else ()
    for item in kept:
        if item.update == update:
            return item.prefix
    trunk = getattr(config, field)
    have = f"it keeps {', '.join(f'{item.update:,}' for item in kept)}" if kept else "it keeps none"
    other = "branch off at one of these, or " if kept else ""
    raise UserError(
        f"'{trunk}' has no checkpoint of update {update:,} any more ({have}): {other}`retry --from {trunk}` makes it "
        "again"
    )
