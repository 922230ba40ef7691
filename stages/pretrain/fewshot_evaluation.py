"""The few-shot evaluation of a checkpoint: features of the images that are drawn, and of the test images."""

from __future__ import annotations

import shutil
from pathlib import PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray

from cluster.errors import UserError
from stages.classifiers.drawn import DrawnProblem, drawn_places
from stages.classifiers.evaluate import Scores, evaluate
from stages.classifiers.tables import Count, Key, accuracy_rows, metrics
from stages.data.config import DataConfig
from stages.data.evaluation_loader import evaluation_batches
from stages.data.labels import split_labels
from stages.data.manifest import dataset_meta
from stages.data.pixels import normalise
from stages.frozen.splits import pool_and_test
from stages.frozen.store import Images, check_finite
from stages.frozen.threads import torch_threads
from stages.models.build import Network, build
from stages.models.masked import ARRAYS
from stages.pretrain.fewshot_task import CheckpointTask, published_before, store
from stages.temporary import new_folder
from stages.training.manifest import Damaged
from stages.training.restore import CheckpointFiles

FEW = 0.1
"""Part of the images below which they are read one by one: whole shards would be many more bytes."""


def evaluate_checkpoint(task: CheckpointTask) -> None:
    """Measure how much the network of a checkpoint knows, and store that; where that was done, do nothing.

    Raises UserError where trying again would be of no use.
    """
    if published_before(task.storage, task.prefix):
        return
    with torch_threads(task.settings.threads):
        found, counts = _scores(task)
    rows = accuracy_rows(found, counts)
    store(task, metrics(rows), [{name: row[name] for name in row if name != "features"} for row in rows])


def _scores(task: CheckpointTask) -> tuple[dict[Key, Scores], dict[tuple[str, str], Count]]:
    meta = dataset_meta(task.dataset)
    pool_splits, test_splits = pool_and_test(meta)
    labels = split_labels(task.storage, task.dataset, pool_splits, task.input)
    wanted = drawn_places(task.settings, task.class_sets.values(), labels)
    network = _network(task)
    pool, places = _images(task, network, pool_splits, wanted, few=len(wanted) < FEW * len(labels))
    test, _ = _images(task, network, test_splits, None, few=False)
    found: dict[Key, Scores] = {}
    counts: dict[tuple[str, str], Count] = {}
    for name, classes in task.class_sets.items():
        problem = DrawnProblem(task.settings, pool, test, classes, places=places, labels=labels)
        counts[meta.name, name] = Count(classes=len(classes), test_images=len(problem.truth))
        for (classifier, shots), scores in evaluate(task.settings, problem).items():
            key = Key(data=meta.name, class_set=name, features="fewshot", classifier=classifier, shots=shots)
            found[key] = scores
    return found, counts


def _network(task: CheckpointTask) -> Network:
    """As the stage would export it now, without what predicts masked patches."""
    key = "average" if task.averaged else "weight"
    folder = new_folder()
    files = CheckpointFiles(folder)
    try:
        files.fetch(task.storage, task.prefix)
        files.check_own(identity=PurePosixPath(task.prefix).parents[1].name, data=task.trained_on)
        tensors = files.tensors(keys=frozenset({key}))
        state = {name: value for name, _, value in tensors if not name.startswith(ARRAYS)}
    except Damaged as error:
        raise UserError(str(error)) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    network = build(task.model, task.resolution, task.num_classes)
    network.load_state_dict(state)
    return network.eval().to(_device(task))


def _images(
    task: CheckpointTask, network: Network, splits: tuple[str, ...], places: NDArray[np.int64] | None, *, few: bool
) -> tuple[Images, NDArray[np.int64]]:
    """Features and labels of all images of the splits, or of those at some places; and their places, which rise."""
    features, labels, found = [], [], []
    batches = evaluation_batches(
        task.storage,
        task.dataset,
        splits,
        resolution=task.resolution,
        batch=task.settings.images_at_once,
        rank=0,
        world_size=1,
        classes=range(len(task.dataset.meta["classes"])),
        config=_input(task, few=few),
        places=places,
    )
    for batch in batches:
        with torch.inference_mode():
            own = network.features(normalise(batch.images[batch.mask].to(_device(task))))
        features.append(own.float().cpu().numpy())
        labels.append(batch.labels[batch.mask].numpy())
        found.append(batch.samples[batch.mask.numpy()])
    rows = np.concatenate(features)
    check_finite(rows, f"features of {dataset_meta(task.dataset).name!r}", "infinite numbers; look at its training")
    return Images(features=rows, labels=np.concatenate(labels)), np.concatenate(found)


def _input(task: CheckpointTask, *, few: bool) -> DataConfig:
    """How images are read: with no more threads than the task has cores, since training is beside it."""
    busy = 0 if task.settings.gpus else task.settings.threads
    spare = max(0, int(task.settings.cpus) - busy)
    changed = {"loader_threads": min(task.input.threads(), spare)} | ({"fetch": "samples"} if few else {})
    return task.input.model_copy(update=changed)


def _device(task: CheckpointTask) -> str:
    return "cuda" if task.settings.gpus else "cpu"
