"""Which of a model's outputs stands for which class of a data set."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.errors import UserError
from stages.context import Output
from stages.data.manifest import DatasetMeta, dataset_meta

NONE = -1
"""The model has no output for the class."""


def outputs_of_classes(dataset: Output, model: Output) -> tuple[tuple[int, ...], str]:
    """For each label of the data set the model's output, or NONE; and how they were matched.

    A model that was trained on this data set says it itself. Else by the classes' names; where a model has as many
    classes but no names for them (an imported one), by their order. Raises UserError where nothing fits.
    """
    meta = dataset_meta(dataset)
    if not model.meta["num_classes"]:
        raise UserError("the model has no classes: it has learned from masked patches; fine-tune it first")
    if model.meta["trained_on"] == dataset.digest:
        position = {label: output for output, label in enumerate(model.meta["class_ids"])}
        return tuple(position.get(label, NONE) for label in range(len(meta.classes))), "as it was trained"
    names = [str(name) for name in model.meta["classes"]]
    # An imported model without names has numbers in their place, which say nothing.
    if "imported" not in model.meta or names != [str(number) for number in range(len(names))]:
        named = {name: output for output, name in enumerate(names)}
        found = tuple(named.get(name, NONE) for name in meta.classes)
        if len(named) == len(names) and any(output != NONE for output in found):
            return found, "by name"
    if len(meta.classes) == len(names):
        return tuple(range(len(names))), "by order"
    raise UserError(
        f"data set {meta.name!r} has {len(meta.classes)} classes ({_some(meta.classes)}), and none is one of the "
        f"model's {len(names)} ({_some(names)}): fine-tune the model on such classes, or name them with class_names "
        "of its import"
    )


def splits_to_count(asked: Sequence[str], meta: DatasetMeta, outputs: Sequence[int]) -> tuple[str, ...]:
    """The splits, `test` and what the model knows of `held_out_test` where none is asked for. Raises UserError."""
    known = all(outputs[label] != NONE for label in meta.held_out)
    wanted = tuple(asked) or (("test", "held_out_test") if known else ("test",))
    missing = [name for name in asked if name not in meta.splits]
    found = tuple(name for name in wanted if name in meta.splits and meta.split(name).count)
    if missing or not found:
        raise UserError(
            f"splits={list(wanted)}: data set {meta.name!r} has images in {', '.join(meta.splits)}: name some of these"
        )
    return found


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
