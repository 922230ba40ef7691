"""Fine-tuning at another resolution: pretrained weights, fresh zero-initialised head, all classes."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from cluster.errors import UserError
from stages.context import Context, Inputs, Result
from stages.data.manifest import dataset_meta
from stages.finetune.config import FinetuneConfig
from stages.models.config import model_config
from stages.training.job import Job
from stages.training.run import run_training


def run(config: FinetuneConfig, inputs: Inputs, context: Context) -> Result:
    """Fine-tune from the pretrained model, or from this stage's newest checkpoint; returns the model."""
    dataset = dataset_meta(inputs["data"])
    splits = dataset.splits
    model = model_config(inputs["model"].meta["model"]).for_finetuning(config.dropout, config.stochastic_depth)
    model.grid(config.resolution)
    training = tuple(name for name in (*config.train_splits, "held_out") if name in splits)
    if missing := [name for name in config.train_splits if name not in splits]:
        raise UserError(f"train_splits={list(config.train_splits)}: the data set has no {missing[0]} split")
    job = Job(
        config=config.with_rate_of(inputs.get("lr_from")),
        model=model,
        resolution=config.resolution,
        dataset=inputs["data"],
        splits=training,
        evaluation=_evaluation(splits, [name for name in config.evaluate_splits if name not in training]),
        class_ids=tuple(range(len(dataset.classes))),
        updates=config.total_updates(sum(splits[name].count for name in training)),
        seed=context.seed,
        pretrained=inputs["model"],
        resampling=config.resampling,
    )
    return run_training(job, context)


def _evaluation(splits: Collection[str], asked: Iterable[str]) -> dict[str, tuple[str, ...]]:
    wanted = {"validation": ("validation",), "test": ("test", "held_out_test")}
    found = {name: tuple(part for part in wanted[name] if part in splits) for name in asked}
    return {name: parts for name, parts in found.items() if parts}
