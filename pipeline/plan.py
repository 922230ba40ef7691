"""What a workflow would do and why, before anything runs. Reads storage, changes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cluster.errors import UserError
from cluster.storage import Storage
from pipeline.config import Workflow
from pipeline.consistency import trained_model
from pipeline.head import read_head
from pipeline.identity import differences, fingerprint, references, stage_folder
from pipeline.record import read_record
from pipeline.reuse import Finished, identify, reusable
from stages.config import StageConfig
from stages.data.manifest import dataset_meta
from stages.finetune.config import FinetuneConfig
from stages.models.flops import forward_macs, parameter_count
from stages.pretrain.config import PretrainConfig

NEIGHBOURS = 50
"""Earlier stages of the same kind that are compared to explain why none is reused."""


@dataclass(kw_only=True)
class PlannedStage:
    """`action` is reuse, resume or run; `why` says it in a line or two."""

    name: str
    kind: str
    action: str
    why: list[str]
    folder: str
    work: dict[str, float] = field(default_factory=dict)
    """Known in advance for training stages: parameters, updates, images, exaflops."""


def plan(storage: Storage, workflow: Workflow) -> list[PlannedStage]:
    """The stages in the order in which they would run. Raises UserError for outside inputs that are missing."""
    workflow.check()
    prints: dict[str, str] = {}
    done: dict[str, Finished] = {}
    planned: dict[str, PlannedStage] = {}
    for name in workflow.order():
        config = workflow.stages[name]
        targets = references(config)
        document = identify(workflow, name, {f: prints[target] for f, target in targets.items()})
        prints[name] = fingerprint(document)
        folder = stage_folder(config.kind, prints[name])
        waiting = [target for target in targets.values() if target not in done]
        found = None
        if not waiting:
            found = reusable(storage, folder, config, {f: done[target].output.digest for f, target in targets.items()})
        if found is not None:
            done[name] = found
            action, why = "reuse", [f"done in {found.record.seconds:.0f} s by attempt {found.record.attempt}"]
        else:
            action, why = _explain(storage, config, document, folder, waiting)
            why = [_in_words(line, targets) for line in why]
        planned[name] = PlannedStage(
            name=name, kind=config.kind, action=action, why=why, folder=folder, work=_work(workflow, name, done)
        )
    return list(planned.values())


def _explain(
    storage: Storage, config: StageConfig, document: dict[str, Any], folder: str, waiting: list[str]
) -> tuple[str, list[str]]:
    head = read_head(storage, folder)
    if head is not None and head[0].state == "running":
        return "resume", [f"{head[0].owner} holds it, attempt {head[0].attempt}: waits for it or takes over"]
    if head is not None and head[0].checkpoint is not None and head[0].record is None:
        return "resume", [f"from the checkpoint at update {head[0].checkpoint.update}"]
    if head is not None and head[0].record is not None:
        if waiting:
            return "run", [f"unless {', '.join(waiting)} makes the same bytes as before"]
        return "run", ["its inputs or its output are not the recorded ones"]
    nearest = _nearest(storage, config.kind, document)
    if nearest is None:
        return "run", [f"no {config.kind} has been done yet"]
    more = [f"and {len(nearest) - 3} more"] if len(nearest) > 3 else []
    return "run", [f"differs from the nearest {config.kind} that is done:", *nearest[:3], *more]


def _in_words(line: str, targets: dict[str, str]) -> str:
    """An input's fingerprint says nothing to a reader; the stage that it comes from does."""
    for name, target in targets.items():
        if f": inputs.{name}: " in line:
            return f"its {name}, from {target}, is another one"
    return line


def _nearest(storage: Storage, kind: str, document: dict[str, Any]) -> list[str] | None:
    """The differences from the most similar finished stage of this kind."""
    best: list[str] | None = None
    for name in storage.list_folders(f"stages/{kind}/")[:NEIGHBOURS]:
        head = read_head(storage, f"stages/{kind}/{name}")
        if head is None or head[0].record is None:
            continue
        lines = differences(read_record(storage, head[0].record).identity, document)
        if best is None or len(lines) < len(best):
            best = lines
    return best


def _work(workflow: Workflow, name: str, done: dict[str, Finished]) -> dict[str, float]:
    """Parameters, updates, images and exaFLOPs (6 per multiply-add and image: forward and backward)."""
    config = workflow.stages[name]
    if not isinstance(config, PretrainConfig | FinetuneConfig) or config.data not in done:
        return {}
    dataset = dataset_meta(done[config.data].output)
    model = trained_model(workflow.stages, name)
    if isinstance(config, PretrainConfig):
        classes, splits = len(dataset.classes) - len(dataset.held_out), ("train",)
    else:
        classes, splits = len(dataset.classes), ("train", "held_out")
    count = sum(dataset.splits[split].count for split in splits if split in dataset.splits)
    try:
        updates = config.total_updates(count)
    except UserError as error:
        raise UserError(f"stages.{name}: {error}") from error
    images = updates * config.global_batch
    macs = forward_macs(model, config.resolution, classes)
    return {
        "parameters": parameter_count(model, config.resolution, classes),
        "updates": updates,
        "images": images,
        "exaflops": 6 * macs * images / 1e18,
    }
