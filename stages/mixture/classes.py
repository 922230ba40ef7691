"""The classes of several data sets as one list."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.errors import UserError
from stages.data.manifest import DatasetMeta
from stages.mixture.config import MixtureConfig


def join_classes(config: MixtureConfig, metas: Sequence[DatasetMeta]) -> tuple[tuple[str, ...], list[list[int]]]:
    """All class names, and for each data set the new label of each of its own.

    A name that a data set has twice stands for two classes; by name they are matched in their order.
    """
    joined: dict[tuple[str, int], int] = {}
    labels = []
    for stage, meta in zip(config.data, metas, strict=True):
        seen: dict[str, int] = {}
        own = []
        for name in meta.classes:
            shown = f"{stage}/{name}" if config.classes == "apart" else name
            seen[shown] = seen.get(shown, 0) + 1
            own.append(joined.setdefault((shown, seen[shown]), len(joined)))
        labels.append(own)
    return tuple(name for name, _ in joined), labels


def join_held_out(metas: Sequence[DatasetMeta], labels: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The classes that one of the data sets holds out. Raises UserError where another one trains on it."""
    held_out = {own[label] for meta, own in zip(metas, labels, strict=True) for label in meta.held_out}
    for meta, own in zip(metas, labels, strict=True):
        trained = meta.split("train").class_counts
        for label, count in enumerate(trained):
            if count and own[label] in held_out:
                raise UserError(
                    f"class {meta.classes[label]!r} is held out in one data set and trained on in {meta.name!r}: "
                    "take classes: apart, or hold it out in both"
                )
    return tuple(sorted(held_out))
