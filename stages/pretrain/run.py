"""Pretraining: a network on the classes that are not held out."""

from __future__ import annotations

from pathlib import PurePosixPath

from cluster.errors import UserError
from stages.context import Context, Inputs, Output, Result
from stages.data.manifest import dataset_meta
from stages.models.masked_config import MaskedConfig
from stages.pretrain.config import PretrainConfig
from stages.pretrain.fewshot import Evaluations
from stages.training.job import Job
from stages.training.run import run_training
from stages.training.schedule import Cooldown


def run(config: PretrainConfig, inputs: Inputs, context: Context) -> Result:
    """Train from the seed, from another model, or from this stage's newest checkpoint; returns the model."""
    dataset = dataset_meta(inputs["data"])
    class_ids = tuple(i for i in range(len(dataset.classes)) if i not in dataset.held_out)
    classes = [dataset.classes[i] for i in class_ids]
    if config.masked is None and config.loss == "softmax" and len(classes) < 2:
        raise UserError(
            f"data: '{config.data}' has one class to train on, {', '.join(classes)}: expected two or more, "
            "as folders beside each other; or objective: masked, which needs no classes"
        )
    if "init_from" in inputs:
        _check_objective(str(config.init_from), inputs["init_from"], config.masked)
    if "init_from" in inputs and config.masked is None:
        _check_classes(str(config.init_from), inputs["init_from"], classes)
    images = dataset.splits["train"].count
    cooldown = None
    if config.branch_at is not None and config.cooldown is not None:
        cooldown = Cooldown(start=config.branch_at, updates=config.cooldown, trunk=config.trunk_updates(images))
    evaluation = {name: (name,) for name in config.evaluate_splits if name in dataset.splits}
    job = Job(
        config=config.with_rate_of(inputs.get("lr_from")),
        model=config.model,
        resolution=config.resolution,
        dataset=inputs["data"],
        splits=("train",),
        evaluation=evaluation,
        class_ids=class_ids,
        updates=config.total_updates(images),
        seed=context.seed,
        pretrained=inputs.get("init_from"),
        fresh_head=False,
        cooldown=cooldown,
        trunk_folder=str(PurePosixPath(inputs["trunk"].prefix).parents[1]) if "trunk" in inputs else None,
        masked=config.masked,
        evaluated_every=config.fewshot.every if config.fewshot is not None else 0,
    )
    if config.fewshot is None:
        return run_training(job, context)
    own = Evaluations(job, config.fewshot, inputs.get("fewshot_data", inputs["data"]), context)
    with own.beside():
        result = run_training(job, context)
    return own.added_to(result)


def _check_objective(name: str, pretrained: Output, masked: MaskedConfig | None) -> None:
    """Raises UserError where the head that is taken over predicts something else."""
    theirs, own = pretrained.meta.get("objective"), masked.model_dump(mode="json") if masked is not None else None
    if theirs is None and own is None:
        return
    if theirs is None or own is None or theirs["target"] != own["target"]:
        said = [found["target"] if found else "classes" for found in (theirs, own)]
        raise UserError(
            f"init_from: '{name}' predicts {said[0]}, and this stage {said[1]}, so the head does not fit: "
            "a finetune stage takes the weights over with a fresh head"
        )


def _check_classes(name: str, pretrained: Output, classes: list[str]) -> None:
    """Raises UserError where the head that is taken over is of other classes."""
    theirs = pretrained.meta.get("classes", [])
    if len(theirs) != len(classes):
        raise UserError(
            f"init_from: '{name}' has {len(theirs)} classes, and this data set {len(classes)}: "
            "a finetune stage takes the weights over with a fresh head"
        )
    if different := [f"{old} → {new}" for old, new in zip(theirs, classes, strict=True) if old != new]:
        raise UserError(
            f"init_from: '{name}' has as many classes, but others: {', '.join(different[:3])}: "
            "a finetune stage takes the weights over with a fresh head"
        )
