"""Features of a data set's images, computed once and stored: by tasks where there are many images.

Images to draw shots from are the *pool*, those to measure on the *test* images.
"""

from __future__ import annotations

from cluster.errors import UserError
from stages.context import Context, Output
from stages.data.manifest import DatasetMeta, dataset_meta
from stages.frozen.config import FrozenConfig
from stages.frozen.span import ranges, run_tasks
from stages.frozen.store import FORMAT, FeatureSet
from stages.frozen.task import ExtractTask, Part, extract_part

POOL = ("train", "held_out")
TEST = ("test", "held_out_test")


def extract(config: FrozenConfig, dataset: Output, model: Output, context: Context) -> FeatureSet:
    """The features of a data set, stored below the stage's folder. Raises UserError."""
    meta = dataset_meta(dataset)
    if meta.multi_label:
        raise UserError(f"data set {meta.name!r} has images of several labels: this evaluation needs one of each")
    pool, test = (_present(meta, splits) for splits in (POOL, TEST))
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


def _present(meta: DatasetMeta, splits: tuple[str, ...]) -> tuple[str, ...]:
    present = tuple(name for name in splits if name in meta.splits)
    if not any(meta.split(name).count for name in present):
        raise UserError(f"data set {meta.name!r} has none of the splits {', '.join(splits)}")
    return present


def _resolution(config: FrozenConfig, model: Output) -> int:
    if model.kind != "model":
        raise UserError(f"{model.prefix} is a {model.kind}, not a model: refer to a pretrain or finetune stage")
    own = int(model.meta["resolution"])
    if config.resolution not in (None, own):
        raise UserError(f"resolution={config.resolution}: the model has {own}; fine-tune it to change it")
    return own
