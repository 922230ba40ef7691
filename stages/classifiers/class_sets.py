"""Which classes are told apart, and whether there are images of them. Light: no torch or numpy here."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from cluster.errors import UserError
from stages.classifiers.config import ClassSet

CLASS_SETS = ("all", "seen", "held_out")

ClassSets = Mapping[str, tuple[int, ...]]
"""Labels by the name of the set."""


def class_sets_of(
    wanted: Sequence[ClassSet] | None, *, classes: int, held_out: Collection[int], never_trained_on: bool
) -> dict[str, tuple[int, ...]]:
    """The labels of each set: the `wanted` ones, or all that make sense. Raises UserError.

    `seen` and `held_out` are there where the model was trained on the data set without the latter.
    """
    everything = tuple(range(classes))
    known = {"all": everything}
    if never_trained_on:
        known["seen"] = tuple(i for i in everything if i not in held_out)
        known["held_out"] = tuple(sorted(held_out))
    names = wanted or tuple(known)
    missing = [name for name in names if name not in known]
    if missing:
        raise UserError(
            f"class_sets={list(names)}: {', '.join(missing)} needs a model that was trained on this data set without "
            f"its held-out classes; possible here: {', '.join(known)}"
        )
    return {name: known[name] for name in names}


def check_images(
    class_sets: ClassSets, name: str, classes: Sequence[str], *, pool: Collection[int], test: Collection[int]
) -> None:
    """Every set needs images to test on, and every class one to learn from. Raises UserError.

    `name` and `classes` are the data set's; `pool` and `test` the labels that occur among the images of each.
    """
    for class_set, members in class_sets.items():
        if not members:
            raise UserError(f"data set {name!r} has no classes to tell apart: look at its ingestion")
        if not set(test).intersection(members):
            raise UserError(f"no test images of the {class_set} classes: raise test_fraction of the ingestion")
        there = set(pool)
        empty = [classes[i] for i in members if i not in there]
        if empty:
            raise UserError(f"no images to draw shots from for the classes {', '.join(empty)}: lower test_fraction")
