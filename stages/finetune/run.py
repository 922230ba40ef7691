"""Fine-tuning at another resolution: pretrained weights, fresh zero-initialised head, all classes."""

from __future__ import annotations

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
    model = model_config(inputs["model"].meta["model"]).for_finetuning(config.dropout)
    model.grid(config.resolution)
    training = tuple(name for name in ("train", "held_out") if name in splits)
    job = Job(
        config=config.with_rate_of(inputs.get("lr_from")),
        model=model,
        resolution=config.resolution,
        dataset=inputs["data"],
        splits=training,
        evaluation=_evaluation(tuple(splits)),
        class_ids=tuple(range(len(dataset.classes))),
        updates=config.total_updates(sum(splits[name].count for name in training)),
        seed=context.seed,
        pretrained=inputs["model"],
        resampling=config.resampling,
    )
    return run_training(job, context)


def _evaluation(splits: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    wanted = {"validation": ("validation",), "test": ("test", "held_out_test")}
    found = {name: tuple(part for part in parts if part in splits) for name, parts in wanted.items()}
    return {name: parts for name, parts in found.items() if parts}
