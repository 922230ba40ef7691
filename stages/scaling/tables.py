"""The numbers: repeats as one row, models one by one, and how far the two kinds of accuracy rank models alike."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from stages.scaling.models import Pretrained

Row = dict[str, Any]
KINDS = ("finetuned", "fewshot")
ENOUGH_FOR_RANKS = 3
"""Of two models any two rankings agree wholly, or not at all."""


def group_rows(models: Sequence[Pretrained], found: Mapping[str, Mapping[str, float]]) -> list[Row]:
    """A row for models of the same network that have seen as many images of as many: repeats of other seeds.

    Of each kind of accuracy it has the mean, the standard deviation (of a sample; one model has none), and of how
    many models. `found` are accuracies by kind and digest. Rows come by network, the cheapest first, and by images.
    """
    groups: dict[tuple[Any, ...], list[Pretrained]] = {}
    for model in sorted(models, key=_order):
        groups.setdefault((model.network, model.train_images, model.images_seen), []).append(model)
    return [
        {
            "network": members[0].network,
            "train_images": members[0].train_images,
            "images_seen": members[0].images_seen,
            "exaflops": members[0].exaflops,
            "models": len(members),
            **_accuracies(members, found),
        }
        for members in groups.values()
    ]


def model_rows(models: Sequence[Pretrained], found: Mapping[str, Mapping[str, float]]) -> list[Row]:
    """A row for each model that has both kinds of accuracy."""
    return [
        {
            "model": model.stage,
            "network": model.network,
            "train_images": model.train_images,
            "images_seen": model.images_seen,
            **{kind: found[kind][model.digest] for kind in KINDS},
        }
        for model in sorted(models, key=_order)
        if all(model.digest in found[kind] for kind in KINDS)
    ]


def spearman(rows: Sequence[Row]) -> float | None:
    """Spearman's ρ of few-shot and fine-tuned accuracy, equal ones having their mean rank.

    None of fewer than three models, and where all have the same accuracy.
    """
    columns = [[row[kind] for row in rows] for kind in KINDS]
    if len(rows) < ENOUGH_FOR_RANKS or any(len(set(column)) < 2 for column in columns):
        return None
    return float(np.corrcoef([rankdata(column) for column in columns])[0, 1])


def metrics(models: Sequence[Pretrained], rho: float | None) -> dict[str, float]:
    """How many models, what their pretraining took together as far as that is known, and ρ."""
    found = {"models": float(len(models)), "exaflops": sum(model.exaflops or 0.0 for model in models)}
    return found if rho is None else {**found, "spearman": rho}


def shown_kinds(rows: Iterable[Row], axis: str) -> dict[str, list[Row]]:
    """By kind of accuracy, the rows that have it and a place on the axis; kinds of one place alone are no figure."""
    rows = list(rows)
    placed = {kind: [row for row in rows if None not in (row[axis], row[kind])] for kind in KINDS}
    return {kind: own for kind, own in placed.items() if len({row[axis] for row in own}) > 1}


def _accuracies(members: Sequence[Pretrained], found: Mapping[str, Mapping[str, float]]) -> Row:
    row: Row = {}
    for kind in KINDS:
        values = [found[kind][model.digest] for model in members if model.digest in found[kind]]
        row[kind] = statistics.fmean(values) if values else None
        row[f"{kind}_deviation"] = statistics.stdev(values) if len(values) > 1 else None
        row[f"{kind}_models"] = len(values)
    return row


def _order(model: Pretrained) -> tuple[Any, ...]:
    return (model.macs, model.network, model.train_images or 0, model.images_seen or 0, model.stage)
