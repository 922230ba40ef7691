"""A proposal as a workflow file with comments: what each choice is for, and what else there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from pipeline.beginning.proposal import Proposal, stride
from pipeline.beginning.words import seen_in_words
from stages.models.config import model_config
from stages.models.resnet_config import BitConfig

_MORE = "# All fields, with their meanings: patchline schema, docs/data.md, docs/training.md, docs/evaluation.md."


def workflow_text(proposal: Proposal) -> str:
    """The text of the workflow file."""
    name = workflow_name(proposal)
    stages = (_ingest, _pretrain, _finetune, _fewshot, _analyze)
    parts = [_head(proposal, name), *(stage(proposal) for stage in stages), _register(proposal, name)]
    return "\n".join(line for part in parts for line in part if line is not None) + "\n"


def workflow_name(proposal: Proposal) -> str:
    """Of a workflow on these images: what their folder or file is called, as far as it may be."""
    source = proposal.seen.source
    stem = Path(str(source["path"])).stem if "path" in source else str(source["kind"])
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-_")[:40]
    return name if re.match(r"[A-Za-z0-9]", name) else "mine"


def flow(value: Any) -> str:
    """A value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), sort_keys=False, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def _head(proposal: Proposal, name: str) -> list[str]:
    return [
        f"# {seen_in_words(proposal.seen)}.",
        "# The values are to begin with: all of them can be changed, and `patchline plan` says what would run.",
        _MORE,
        f"name: {flow(name)}",
        "seed: 0  # of everything that chance decides: splits, first weights, order, crops",
        "stages:",
    ]


def _ingest(proposal: Proposal) -> list[str | None]:
    seen, rewritten = proposal.seen, proposal.seen.source["kind"] != "webdataset"
    lines: list[str | None] = [
        "  ingest:  # images into shards (WebDataset tars) with an index",
        f"    source: {flow(seen.source)}",
    ]
    if seen.train is not None and seen.exact and not proposal.held_out:
        expected = {"train_images": proposal.train, "classes": seen.classes}
        lines.append(f"    expected: {flow(expected)}  # what this file was written for: `plan` counts with it")
    if proposal.answers.where != "local" and rewritten:
        lines.append(
            "    # ^ every machine of the cluster has to see this path; or run `patchline ingest` here, into a bucket"
        )
    for split, field, fraction in (
        ("validation", "validation_fraction", proposal.test_fraction / 2),
        ("test", "test_fraction", proposal.test_fraction),
    ):
        if split in seen.others:
            lines.append(f"    # {split}: {seen.others[split]:,} images that the source sets apart")
        elif rewritten:
            lines.append(f"    {field}: {fraction:g}  # of each class, drawn by the seed")
    if rewritten:
        held = "classes that pretraining never sees; fewshot tells how well it knows them"
        lines.append(f"    held_out_classes: {proposal.held_out}  # {held}")
        lines.append("    # longest_side: 512  # would make larger photos smaller as they are stored")
    return lines


def _pretrain(proposal: Proposal) -> list[str | None]:
    config = model_config(proposal.model)
    length = "passes over the training images; more is better for few images, and takes as much longer"
    return [
        "  pretrain:  # from random weights, as in the paper's section 3",
        "    data: ingest",
        f"    model: {flow(proposal.model)}  # {_why_model(proposal)}",
        f"    resolution: {proposal.resolution}  # pixels; a multiple of {stride(config)}. {_cost(proposal)}",
        f"    epochs: {proposal.epochs}  # {length}",
        f"    global_batch: {proposal.global_batch}  # images an update, over all workers; a multiple of them",
        "    lr: 0.001  # peak of the learning rate, after the warm-up; then it falls as a cosine",
        "    warmup_fraction: 0.05",
        f"    weight_decay: {0.05 if not proposal.gpus else 0.1}",
        _loss(proposal),
        "    input: {crop_area: [0.25, 1.0]}  # random crops of at least a quarter; the paper's are 0.05",
        *_placement(proposal),
        f"    save_every: {proposal.save_every}  # updates between checkpoints: as much is lost where a machine dies",
    ]


def _why_model(proposal: Proposal) -> str:
    if proposal.answers.model is not None:
        return "as you asked for; also Ti/16, S/16, B/16, L/16, R50+B/16, …"
    if isinstance(proposal.model, str):
        return f"for about {proposal.train:,} images; also Ti/16, S/16, B/16, L/16, R50+B/16, …"
    return "small, for this machine; or a name: Ti/16, S/16, …"


def _cost(proposal: Proposal) -> str:
    side = proposal.seen.side
    seen = f"The images have about {side}; " if side is not None else ""
    return f"{seen}twice the resolution costs at least four times the time"


def _placement(proposal: Proposal) -> list[str]:
    if not proposal.gpus:
        return [
            f"    workers: {proposal.workers}  # processes that train together, by DeepSpeed ZeRO",
            f"    threads: {proposal.threads}  # of each of them",
            f"    cpus_per_worker: {proposal.threads}",
        ]
    told = "this machine's GPUs" if proposal.answers.where == "local" else "<- as many GPUs as the cluster has"
    return [
        f"    workers: {proposal.workers}  # {told}",
        "    gpus_per_worker: 1",
        "    precision: bf16  # fp16 for GPUs before Ampere",
    ]


def _finetune(proposal: Proposal) -> list[str | None]:
    return [
        "  finetune:  # a fresh head over all classes, at a higher resolution: section 4.1",
        "    data: ingest",
        "    from: pretrain",
        f"    resolution: {proposal.finetune_resolution}",
        f"    epochs: {proposal.finetune_epochs}",
        f"    global_batch: {proposal.global_batch}",
        "    lr: 0.03  # of SGD; the paper tries 0.003, 0.01, 0.03, 0.06: sweep: {lr: [0.003, 0.01, 0.03, 0.06]}",
        _loss(proposal),
        "    input: {crop_area: [0.6, 1.0]}",
        *_placement(proposal),
        f"    save_every: {proposal.save_every}",
    ]


def _fewshot(proposal: Proposal) -> list[str | None]:
    lines = [
        "  fewshot:  # how good the frozen features are, by a few images of each class",
        "    data: ingest",
        "    from: pretrain",
        f"    shots: {flow(list(proposal.shots))}  # images of each class",
    ]
    if (why := _no_fewshot(proposal)) is not None:
        return [f"  # {why}:", *map(_aside, lines)]
    return [*lines]


def _no_fewshot(proposal: Proposal) -> str | None:
    """Why there can be none, and when there can."""
    if proposal.seen.multi_label:
        return "Shots are of images of one class each; with such ones"
    if proposal.tested:
        return None
    if proposal.seen.source["kind"] == "webdataset":
        return "These tars are for training alone; with tars of a split `test` in source.shards"
    return "Classes of fewer than three images leave none for a test; with more of them"


def _loss(proposal: Proposal) -> str | None:
    several = "    loss: sigmoid  # each class by itself: images have several"
    return several if proposal.seen.multi_label else None


def _analyze(proposal: Proposal) -> list[str | None]:
    lines = [
        "  analyze:  # what the fine-tuned network attends to, by layer and as pictures: figures 6, 7 and 10",
        "    data: ingest",
        "    from: finetune",
        f"    split: {'test' if proposal.tested else 'train'}  # 128 images of it, drawn by the seed",
    ]
    if isinstance(model_config(proposal.model), BitConfig):
        return ["  # A ResNet has no attention; with a Vision Transformer or a hybrid:", *map(_aside, lines)]
    return [*lines]


def _register(proposal: Proposal, name: str) -> list[str | None]:
    rule = "  champion: {metric: finetune/test/accuracy}  # whose best version gets this alias: models:/NAME@champion"
    return [
        "register:  # once all is done, in MLflow, which serves it by its address: docs/serving.md",
        f"  name: {flow(name)}  # of the registered model; each workflow adds a version",
        "  from: finetune",
        rule if proposal.tested else f"{_aside(rule)}; needs a test split",
    ]


def _aside(line: str) -> str:
    """A line as a comment, at the depth that it has."""
    text = line.lstrip()
    return f"{line[: len(line) - len(text)]}# {text}"
