"""Features of a data set's images, computed once and stored: by tasks where there are many images."""

from __future__ import annotations

from cluster.errors import UserError
from stages.context import Context, Output
from stages.data.manifest import dataset_meta
from stages.frozen.config import FrozenConfig
from stages.frozen.span import ranges, run_tasks
from stages.frozen.splits import pool_and_test
from stages.frozen.store import FORMAT, FeatureSet
from stages.frozen.task import ExtractTask, Part, extract_part


def extract(config: FrozenConfig, dataset: Output, model: Output, context: Context) -> FeatureSet:
    """The features of a data set, stored below the stage's folder. Raises UserError."""
    meta = dataset_meta(dataset)
    pool, test = pool_and_test(meta)
    boundary = sum(meta.split(name).count for name in pool)
    tasks = [
        ExtractTask(
            storage=context.storage,
            folder=context.folder,
            dataset=dataset,
            model=model,
            kinds=("features", *config.baselines),
            resolution=_resolution(config, model),
            stored_as=config.stored_as,
            **found,
        )
        for found in ranges(config, context.storage, dataset, (*pool, *test))
    ]
    parts: list[Part] = run_tasks(config, extract_part, tasks, context, label="features")
    return FeatureSet(
        storage=context.storage,
        folder=context.folder,
        meta={
            "format": FORMAT,
            "data": {"name": meta.name, "classes": list(meta.classes), "held_out": list(meta.held_out)},
            "dataset": dataset.digest,
            "model": model.digest,
            "trained_on": model.meta["trained_on"],
            "class_ids": list(model.meta["class_ids"]),
            "pool": list(pool),
            "test": list(test),
            "boundary": boundary,
            "kinds": ["features", *config.baselines],
            "resolution": _resolution(config, model),
            "stored_as": config.stored_as,
            "parts": [part.to_json() for part in parts],
        },
    )


def _resolution(config: FrozenConfig, model: Output) -> int:
    if model.kind != "model":
        raise UserError(f"{model.prefix} is a {model.kind}, not a model: refer to a pretrain or finetune stage")
    own = int(model.meta["resolution"])
    if config.resolution not in (None, own):
        raise UserError(f"resolution={config.resolution}: the model has {own}; fine-tune it to change it")
    return own
