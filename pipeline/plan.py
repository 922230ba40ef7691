"""What a workflow would do and why, before anything runs. Reads storage, changes nothing."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cluster.errors import UserError
from cluster.shapes import ClusterShape
from cluster.storage import Storage
from pipeline.config import Workflow
from pipeline.consistency import has_known_model, other_batch, trained_model
from pipeline.estimate import Estimate, Terms, estimate
from pipeline.head import read_head
from pipeline.identity import determining, differences, fingerprint, references, stage_folder
from pipeline.measured import measured_efficiency, measured_upload
from pipeline.plan_sizes import epoch_images, expected_data, other_size, size_of
from pipeline.record import read_record
from pipeline.reuse import Finished, identify, reusable
from pipeline.trunk import trunk_checkpoint
from stages.config import StageConfig
from stages.finetune.config import FinetuneConfig
from stages.pretrain.config import PretrainConfig
from stages.training.config import TrainingConfig, usable_ranks
from stages.training.memory import Network, memory

NEIGHBOURS = 50
"""Earlier stages of the same kind that are compared to explain why none is reused."""
INITIAL_SHARE = 0.05
"""Part of an average that may still be the weights that training began with."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a plan is asked beside what would run."""

    shape: ClusterShape | None = None
    """The cluster that memory, time and money are wanted for."""
    terms: Terms = field(default_factory=Terms)
    images: int | None = None
    """Training images of data sets that are not there yet."""
    classes: int | None = None
    """Classes that networks tell apart whose data sets are not there yet."""
    image_bytes: float | None = None
    """Of each of their images in storage, in the mean."""
    own: str | None = None
    """The driver that asks, whose own leases keep nobody waiting."""


@dataclass(kw_only=True)
class PlannedStage:
    """`action` is reuse, resume or run; `why` says it in a line, and then a line for each field that differs."""

    name: str
    kind: str
    action: str
    why: list[str]
    folder: str
    work: dict[str, float] = field(default_factory=dict)
    """Known in advance for training stages: parameters, classes, updates, images, exaflops, memory_gb of a worker."""
    unknown: str = ""
    """Why a training stage's work is not known."""
    warnings: list[str] = field(default_factory=list)
    train_images: int | None = None
    """Images of the data set that a training stage reads, where that is known."""
    network: str = ""
    """The network that a training stage trains, as the paper writes it."""
    estimate: Estimate | None = None
    """Of a training stage that is not done, where its work is known and a cluster is asked about."""

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "estimate": self.estimate.document() if self.estimate else None}


def plan(storage: Storage, workflow: Workflow, question: Question | None = None) -> list[PlannedStage]:
    """The stages in the order in which they would run.

    Raises UserError for outside inputs that are missing, unless the question states what they would tell.
    """
    workflow.check()
    workflow.check_imported()
    question = question or Question()
    prints: dict[str, str] = {}
    done: dict[str, Finished] = {}
    planned: dict[str, PlannedStage] = {}
    for name in workflow.order():
        config = workflow.stages[name]
        targets = references(config)
        try:
            document = identify(workflow, name, {f: prints[target] for f, target in targets.items()})
        except UserError as error:
            if question.images is None and expected_data(config) is None:
                raise
            # Whoever states the size of a data set may plan where its images are not.
            prints[name] = f"unknown: {name}"
            planned[name] = PlannedStage(name=name, kind=config.kind, action="run", why=[str(error)], folder="")
            continue
        prints[name] = fingerprint(document)
        folder = stage_folder(config.kind, prints[name])
        needed = determining(config, targets)
        waiting = [target for target in needed.values() if target not in done]
        found = None
        if not waiting:
            found = reusable(storage, folder, config, {f: done[target].output.digest for f, target in needed.items()})
        if found is not None:
            done[name] = found
            action, why = "reuse", [f"done in {found.record.seconds:.0f} s by attempt {found.record.attempt}"]
        else:
            action, why = _explain(storage, config, document, folder, waiting, question.own)
            why = [_in_words(line, targets) for line in why]
        planned[name] = PlannedStage(name=name, kind=config.kind, action=action, why=why, folder=folder)
        _add_work(storage, planned[name], workflow, done, question)
        if action != "reuse":
            planned[name].warnings += _no_beginning(storage, config, folder, done)
    return list(planned.values())


def _terms(storage: Storage, question: Question, config: TrainingConfig, network: Network) -> Terms:
    """What the plan is told, with what runs like this one reached here where nothing is stated."""
    terms = question.terms
    if terms.efficiency is None and (found := measured_efficiency(storage, config, network)):
        terms = replace(terms, efficiency=found[0], efficiency_from=found[1])
    stated = question.shape is not None and question.shape.bucket_mb_per_s is not None
    asked = terms.notice is not None or terms.mtbf_hours is not None
    if asked and not stated and (found := measured_upload(storage, config, network)):
        terms = replace(terms, upload_seconds=found[0], upload_from=found[1])
    return terms


def _explain(
    storage: Storage, config: StageConfig, document: dict[str, Any], folder: str, waiting: list[str], own: str | None
) -> tuple[str, list[str]]:
    head = read_head(storage, folder)
    if head is not None and head[0].state == "running" and head[0].owner != own:
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
    return "run", [f"differs from the nearest {config.kind} that is done:", *nearest]


def _no_beginning(storage: Storage, config: StageConfig, folder: str, done: dict[str, Finished]) -> list[str]:
    """Why a branch whose trunk is done cannot start: nothing, where it can or has a checkpoint of its own."""
    trunk = getattr(config, config.begins_at[0]) if config.begins_at else None
    if trunk not in done:
        return []
    own = read_head(storage, folder)
    if own is not None and own[0].checkpoint is not None:
        return []
    try:
        trunk_checkpoint(storage, config, done[trunk].folder)
    except UserError as error:
        return [f"cannot start: {error}"]
    return []


def _in_words(line: str, targets: dict[str, str]) -> str:
    """An input's fingerprint says nothing to a reader; the stage that it comes from does."""
    for name, target in targets.items():
        if f": inputs.{name}: " in line:
            return f"its {name}, from {target}, is another one"
    return line


def _nearest(storage: Storage, kind: str, document: dict[str, Any]) -> list[str] | None:
    """The differences from the most similar finished stage of this kind."""
    best: list[str] | None = None
    for name in storage.list_folders(f"stages/{kind}/", NEIGHBOURS):
        head = read_head(storage, f"stages/{kind}/{name}")
        if head is None or head[0].record is None:
            continue
        lines = differences(read_record(storage, head[0].record).identity, document)
        if best is None or len(lines) < len(best):
            best = lines
    return best


def _add_work(
    storage: Storage, stage: PlannedStage, workflow: Workflow, done: dict[str, Finished], question: Question
) -> None:
    """What a training stage computes, and needs for it."""
    config = workflow.stages[stage.name]
    if not isinstance(config, PretrainConfig | FinetuneConfig) or not has_known_model(workflow.stages, stage.name):
        return
    model = trained_model(workflow.stages, stage.name)
    stage.network = f"{model.title} at {config.resolution}"
    images, classes = size_of(workflow, config, done, question)
    stage.train_images = images
    missing = [] if images or config.updates else ["--images"]
    missing += [] if classes is not None else ["--classes"]
    if classes is None or missing:
        stage.unknown = f"'{config.data}' is not done: {' and '.join(missing)} would tell how large this is"
        return
    try:
        updates = config.total_updates(images or 0)
    except UserError as error:
        raise UserError(f"stages.{stage.name}: {error}") from error
    masked = config.masked if isinstance(config, PretrainConfig) else None
    network = Network(model=model, resolution=config.resolution, num_classes=classes, masked=masked)
    stage.warnings = _warnings(config, model.dropout, updates)
    if config.data in done:
        stage.warnings += other_size(expected_data(workflow.stages[config.data]), images, classes)
    # A branch's trunk has made those before.
    updates -= config.begins_at[1] if config.begins_at else 0
    seen = updates * config.global_batch
    stage.work = {
        "parameters": network.parameters,
        "classes": classes,
        "updates": updates,
        "images": seen,
        "exaflops": network.exaflops(seen),
        "memory_gb": _memory_gb(config, network),
    }
    if question.shape is not None and stage.action != "reuse":
        terms = _terms(storage, question, config, network)
        epoch = epoch_images(config, done, question, images) if images else None
        stage.estimate = estimate(config, network, updates, question.shape, terms, epoch)
        if stage.action == "resume":
            stage.warnings.append("time and money are those of the whole run, of which a part is done")


def _memory_gb(config: TrainingConfig, network: Network) -> float:
    """What each worker's device holds at its peak, with as many workers as the workflow asks for, in GB."""
    ranks = usable_ranks(config.global_batch, config.most_workers)
    return memory(config, network, ranks, "cuda" if config.gpus_per_worker else "cpu").total / 1e9


def _warnings(config: TrainingConfig, dropout: float, updates: int) -> list[str]:
    warnings = []
    initial = config.polyak_decay**updates
    if initial > INITIAL_SHARE:
        better = math.floor(INITIAL_SHARE ** (1 / updates) * 1e5) / 1e5
        warnings.append(
            f"polyak_decay={config.polyak_decay}: after {updates:,} updates {initial:.0%} of the average is what "
            f"training began with: {better} leaves {INITIAL_SHARE:.0%}"
        )
    if other := other_batch(config):
        warnings.append(other)
    if dropout > 0:
        warnings.append(f"dropout={dropout}: its masks vary with the number of workers")
    return warnings
