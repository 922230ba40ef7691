"""Pretraining: a Vision Transformer from scratch on the classes that are not held out."""

from __future__ import annotations

from stages.context import Context, Inputs, Result
from stages.data.manifest import dataset_meta
from stages.pretrain.config import PretrainConfig
from stages.training.loop import Job
from stages.training.run import run_training


def run(config: PretrainConfig, inputs: Inputs, context: Context) -> Result:
    """Train from the seed, or from this stage's newest checkpoint; returns the model."""
    dataset = dataset_meta(inputs["data"])
    class_ids = tuple(i for i in range(len(dataset.classes)) if i not in dataset.held_out)
    evaluation = {name: (name,) for name in ("validation", "test") if name in dataset.splits}
    job = Job(
        config=config,
        model=config.model,
        resolution=config.resolution,
        dataset=inputs["data"],
        splits=("train",),
        evaluation=evaluation,
        class_ids=class_ids,
        updates=config.total_updates(dataset.splits["train"].count),
        seed=context.seed,
    )
    return run_training(job, context)
