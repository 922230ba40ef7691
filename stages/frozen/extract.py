"""Features of a data set's images, computed once and stored: by tasks where there are many images.

Images to draw shots from are the *pool*, those to measure on the *test* images.
"""

from __future__ import annotations

from cluster.errors import UserError
from stages.context import Context, Output
from stages.data.dataset import open_cache, open_shards
from stages.data.manifest import DatasetMeta, dataset_meta
from stages.frozen.config import FrozenConfig
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
    shards = open_shards(open_cache(context.storage, dataset, config.input), dataset, (*pool, *test))
    total = int(shards.counts.sum())
    boundary = sum(meta.split(name).count for name in pool)
    tasks = [
        ExtractTask(
            storage=context.storage,
            folder=context.folder,
            dataset=dataset,
            model=model,
            splits=(*pool, *test),
            kinds=("features", *config.baselines),
            resolution=_resolution(config, model),
            stored_as=config.stored_as,
            input=config.input,
            start=start,
            stop=min(start + config.images_per_task, total),
            batch=config.batch,
            threads=config.threads,
            device="cuda" if config.gpus_per_task else "cpu",
        )
        for start in range(0, total, config.images_per_task)
    ]
    parts = _run(config, tasks, context)
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


def _run(config: FrozenConfig, tasks: list[ExtractTask], context: Context) -> list[Part]:
    if len(tasks) == 1 and not config.gpus_per_task:
        # Starting a process elsewhere would take longer, and might wait for room beside a gang that trains.
        return [extract_part(tasks[0])]
    place = {"cpus": config.cpus_per_task, "gpus": float(config.gpus_per_task)}
    return list(context.tasks(extract_part, tasks, label="features", **place))


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
