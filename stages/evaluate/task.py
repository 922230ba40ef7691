"""One task of an evaluation: the tally of a range of images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cluster.errors import UserError
from stages.data.manifest import dataset_meta
from stages.data.pixels import normalise
from stages.evaluate.classes import NONE
from stages.evaluate.tally import Tally
from stages.frozen.span import Span
from stages.models.store import load_model


@dataclass(frozen=True, kw_only=True)
class EvaluateTask(Span):
    """A range of a data set's images, to be counted. Picklable."""

    outputs: tuple[int, ...]
    """The model's output for each label of the data set."""
    bins: int


def tally_part(task: EvaluateTask) -> Tally:
    """Count the range, each image once. Raises UserError for a class that the model does not have."""
    model = load_model(task.storage, task.model).to(task.device)
    classes = dataset_meta(task.dataset).classes
    tally = Tally(task.bins)
    for batch in task.batches(model.resolution):
        with torch.inference_mode():
            logits = model(normalise(batch.images[batch.mask].to(task.device))).float().cpu()
        tally.add(logits, _known(batch.labels[batch.mask], task.outputs, model.num_classes, classes))
    return tally


def _known(labels: Tensor, outputs: tuple[int, ...], count: int, classes: tuple[str, ...]) -> Tensor:
    """Labels of the data set as outputs of the model: [n], or [n, C] where an image has several."""
    position = torch.tensor(outputs)
    if labels.ndim == 2:
        # Of several labels, one that the model cannot give makes no answer right.
        found = torch.zeros(len(labels), count)
        found[:, position[position != NONE]] = labels[:, position != NONE]
        lost = labels.bool().any(dim=1) & ~found.bool().any(dim=1)
        unknown = labels[lost].bool().any(dim=0).nonzero().flatten().tolist()
    else:
        found = position[labels]
        unknown = sorted(set(labels[found == NONE].tolist()))
    if unknown:
        names = ", ".join(classes[label] for label in unknown[:3])
        raise UserError(
            f"images of {len(unknown)} classes that the model does not have, such as {names}: leave their splits out, "
            "or fine-tune the model on all classes"
        )
    return found
