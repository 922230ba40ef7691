"""`verify`: a window of a finished training is run again, and has to come out as it did.

It goes from a kept checkpoint to the next kept one, or to the end, into `scratch/`, which no HEAD reaches and which is
removed at the end. The losses of its updates, the cursor, and the digests of the weights are compared with what is
stored: bit for bit where placement and builds are those of the attempt that made them, else within rounding.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from cluster.errors import UserError
from cluster.gang import Place, run_gang
from cluster.storage import NotFound, Storage, open_storage
from pipeline.comparison import Trained, Verified, compared, differing, trained_dropout
from pipeline.config import Workflow
from pipeline.head import Committed, read_head
from pipeline.opaque import OpaqueConfig
from pipeline.record import read_record
from pipeline.status import StatusReader
from stages.context import (
    CheckpointDamaged,
    Context,
    Inputs,
    Rank,
    Rollback,
    RollbackWanted,
    Stopped,
    StopRequest,
    read_output,
)
from stages.metrics import now_ms
from stages.pretrain.config import PretrainConfig
from stages.training.config import TrainingConfig
from stages.training.manifest import Damaged


@dataclass(frozen=True, kw_only=True)
class Window:
    """What a rank is to run. Picklable."""

    root: str
    folder: str
    checkpoint: str | None
    updates: int
    """How many; the last one's state is saved."""
    rollbacks: tuple[Rollback, ...]
    function: Callable[[Any, Rank], Any]
    argument: Any


def verify(
    storage: Storage,
    workflow_id: str,
    workflow: Workflow,
    stage: str,
    *,
    start: int | None = None,
    workers: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> Verified:
    """Run the updates after `start` again, to the next kept checkpoint; those of the last window where it is absent.

    `start` is a kept checkpoint's update, or 0 for the beginning. Without `workers` it runs in this process, else as
    a gang on the Ray cluster of RAY_ADDRESS (`pipeline.verification_job` sends it to one). Raises UserError where there
    is no such window, and where so many workers would train otherwise; Damaged where what it would begin with is not
    what its manifest promises.
    """
    found = _trained(storage, workflow_id, workflow, stage)
    begin, end = _window(found, stage, start)
    differs = differing(storage, found, begin, end, workers)
    _check_masks(stage, found.config, differs)
    folder = f"scratch/{now_ms()}-{secrets.token_hex(4)}/{PurePosixPath(found.folder).name}"
    report(f"updates {begin + 1} to {end} of {stage}, in {storage.url}/{folder}")
    try:
        _run(storage, found, folder, begin, end, workers)
        return compared(storage, found, folder, stage, begin, end, differs)
    finally:
        for key in list(storage.list(f"{folder}/")):
            storage.delete(key)


def _trained(storage: Storage, workflow_id: str, workflow: Workflow, stage: str) -> Trained:
    config = workflow.stages.get(stage)
    if isinstance(config, OpaqueConfig):
        raise UserError(f"stages.{stage}.kind: {config.refusal()}")
    if not isinstance(config, TrainingConfig):
        known = [name for name, item in workflow.stages.items() if isinstance(item, TrainingConfig)]
        raise UserError(f"stage '{stage}' does not train; those of {workflow_id} that do: {', '.join(known) or 'none'}")
    reader = StatusReader(storage, workflow_id, [])
    reader.update()
    folder = reader.status.stages[stage].folder if stage in reader.status.stages else None
    head = read_head(storage, folder) if folder is not None else None
    if folder is None or head is None or head[0].record is None:
        raise UserError(f"stage '{stage}' of {workflow_id} is not done: `patchline status {workflow_id}` shows it")
    record = read_record(storage, head[0].record)
    return Trained(folder=folder, head=head[0], record=record, config=config, seed=workflow.seed_of(stage))


def _window(found: Trained, stage: str, start: int | None) -> tuple[int, int]:
    kept = [item.update for item in found.head.checkpoints]
    last = int(found.record.metrics["updates"])
    ends = sorted({*kept, last})
    first = found.config.begins_at[1] if found.config.begins_at else 0
    begins = [first, *[update for update in kept if update < last]]
    if start is None and len(begins) == 1:
        raise UserError(
            f"stage '{stage}' keeps no checkpoint before its last update, {last}: `--from-update {first}` runs all of "
            "it again; keep_every keeps more"
        )
    begin = begins[-1] if start is None else start
    if begin not in begins:
        raise UserError(f"--from-update {start}: expected a kept checkpoint's update: {', '.join(map(str, begins))}")
    return begin, next(update for update in ends if update > begin)


def _check_masks(stage: str, config: TrainingConfig, differs: list[str]) -> None:
    """With dropout another number of ranks draws other masks, which is another training, not one rounded otherwise."""
    dropout = trained_dropout(config)
    ranks = [line for line in differs if line.startswith(("workers: ", "micro_batch: "))]
    if dropout and ranks:
        raise UserError(
            f"stage '{stage}' has dropout={dropout}, whose masks vary with {' and '.join(ranks)}: run it again as it "
            "ran, with as many --workers on a Ray cluster"
        )


# Running it


def _run(storage: Storage, found: Trained, folder: str, begin: int, end: int, workers: int) -> None:
    prefixes = {item.update: item.prefix for item in (*_trunk_checkpoints(storage, found), *found.head.checkpoints)}
    rollbacks = tuple(
        Rollback(update=item.update, start=item.start, stop=item.stop, reason=item.reason)
        for item in found.head.left_out
    )

    def gang(function: Callable[[Any, Rank], Any], argument: Any, *, usable: Any = None, **size: Any) -> Any:
        window = Window(
            root=storage.url,
            folder=folder,
            checkpoint=prefixes[begin] if begin else None,
            updates=end - begin,
            rollbacks=rollbacks,
            function=function,
            argument=argument,
        )
        return run_gang(run_window, window, **{**size, "workers": workers}, name="verify")

    def tasks(*_: Any, **__: Any) -> Any:
        raise AssertionError("training has no tasks")

    context = Context(
        storage=storage, folder=folder, attempt=1, seed=found.seed, tasks=tasks, gang=gang, rollbacks=rollbacks
    )
    # Saved at the window's end and nowhere before: no other update within it is a multiple of that number.
    placement = {"save_every": end, "keep_every": 0, "evaluate_every": 0, "log_every": 1, "workers": workers}
    aside = {"fewshot": None} if isinstance(found.config, PretrainConfig) else {}
    try:
        type(found.config).function()(
            found.config.model_copy(update=placement | aside), _inputs(storage, found), context
        )
    except Stopped:
        # As it was asked to, after the last update of the window.
        return
    except CheckpointDamaged as damage:
        raise Damaged(damage.reason) from None
    except RollbackWanted as wanted:
        raise UserError(f"{wanted}: training went back here, which it had not done before") from None


def _trunk_checkpoints(storage: Storage, found: Trained) -> tuple[Committed, ...]:
    """Those that a branch may have begun with."""
    if found.config.begins_at is None:
        return ()
    trunk = PurePosixPath(found.record.inputs[found.config.begins_at[0]].prefix).parents[1]
    head = read_head(storage, str(trunk))
    kept = head[0].checkpoints if head is not None else ()
    if found.config.begins_at[1] not in [item.update for item in kept]:
        raise Damaged(f"{trunk} keeps no checkpoint of update {found.config.begins_at[1]} any more")
    return kept


def _inputs(storage: Storage, found: Trained) -> Inputs:
    outputs = {}
    aside = found.config.without_effect()
    for field, item in found.record.inputs.items():
        if field in aside:
            continue
        try:
            outputs[field] = read_output(storage, item.prefix)
        except NotFound:
            raise Damaged(f"{item.prefix}/MANIFEST.json is missing: what '{field}' was read from is gone") from None
        if outputs[field].digest != item.digest:
            raise Damaged(f"{item.prefix}/MANIFEST.json is not the one that the stage was made from")
    return outputs


def run_window(window: Window, place: Place) -> Any:
    """Run a window as one rank. Importable, so that Ray can send it."""
    asked = 0

    def stop_requested() -> StopRequest | None:
        # Training asks once for each update, in its course.
        nonlocal asked
        asked += 1
        return StopRequest(reason="cancelled") if asked >= window.updates else None

    rank = Rank(
        rank=place.rank,
        world_size=place.world_size,
        local_rank=place.local_rank,
        local_world_size=place.local_world_size,
        storage=open_storage(window.root),
        folder=window.folder,
        attempt=1,
        checkpoint=window.checkpoint,
        commit_checkpoint=lambda prefix, update, keep: (),
        stop_requested=stop_requested,
        rollbacks=window.rollbacks,
        own_process=place.own_process,
    )
    return window.function(window.argument, rank)
