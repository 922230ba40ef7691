"""One task of an evaluation: the tally of a range of images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cluster.errors import UserError
from cluster.storage import Storage
from stages.context import Output
from stages.data.config import DataConfig
from stages.data.loader import evaluation_batches
from stages.data.manifest import dataset_meta
from stages.data.pixels import normalise
from stages.evaluate.classes import NONE
from stages.evaluate.tally import Tally
from stages.models.store import load_model


@dataclass(frozen=True, kw_only=True)
class EvaluateTask:
    """A range of a data set's images, laid end to end over `splits`. Picklable."""

    storage: Storage
    dataset: Output
    model: Output
    splits: tuple[str, ...]
    outputs: tuple[int, ...]
    """The model's output for each label of the data set."""
    input: DataConfig
    start: int
    stop: int
    batch: int
    threads: int
    device: str
    bins: int


def tally_part(task: EvaluateTask) -> Tally:
    """Count the range, each image once. Raises UserError for a class that the model does not have."""
    model = load_model(task.storage, task.model).to(task.device)
    classes = dataset_meta(task.dataset).classes
    tally, before = Tally(task.bins), torch.get_num_threads()
    torch.set_num_threads(task.threads)
    try:
        for batch in evaluation_batches(
            task.storage, task.dataset, task.splits, resolution=model.resolution, batch=task.batch, rank=0,
            world_size=1, classes=range(len(classes)), config=task.input, span=(task.start, task.stop),
        ):  # fmt: skip
            with torch.inference_mode():
                logits = model(normalise(batch.images[batch.mask].to(task.device))).float().cpu()
            tally.add(logits, _known(batch.labels[batch.mask], task.outputs, model.num_classes, classes))
    finally:
        torch.set_num_threads(before)
    return tally


def _known(labels: Tensor, outputs: tuple[int, ...], count: int, classes: tuple[str, ...]) -> Tensor:
    """Labels of the data set as outputs of the model: [n], or [n, C] where an image has several."""
    position = torch.tensor(outputs)
    if labels.ndim == 2:
        # A label that the model cannot give makes no answer right.
        found = torch.zeros(len(labels), count)
        found[:, position[position != NONE]] = labels[:, position != NONE]
        return found
    unknown = sorted(set(labels[position[labels] == NONE].tolist()))
    if unknown:
        names = ", ".join(classes[label] for label in unknown[:3])
        raise UserError(
            f"images of {len(unknown)} classes that the model does not have, such as {names}: leave their splits out, "
            "or fine-tune the model on all classes"
        )
    return position[labels]
