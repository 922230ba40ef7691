"""Accuracies as rows of tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.classifiers.evaluate import Scores

CLASSIFIERS = {"least_squares": "", "neighbours": "_neighbours", "linear_probe": "_linear_probe"}
"""What the names of metrics end with."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """What an accuracy is of."""

    data: str
    class_set: str
    features: str
    classifier: str
    shots: int


@dataclass(frozen=True, kw_only=True)
class Count:
    """Of a data set and a set of its classes."""

    classes: int
    test_images: int


def accuracy_rows(scores: Mapping[Key, Scores], counts: Mapping[tuple[str, str], Count]) -> list[dict[str, Any]]:
    """One for each key: mean and standard error over draws. λ is the median of those of the draws, if there is one."""
    return [
        {
            "data": key.data,
            "class_set": key.class_set,
            "features": key.features,
            "classifier": key.classifier,
            "shots": key.shots,
            "accuracy": float(own.values.mean()),
            "standard_error": standard_error(own.values[:, 0]),
            "regularisation": _middle(own.regularisation),
            "draws": len(own.values),
            "classes": counts[key.data, key.class_set].classes,
            "test_images": counts[key.data, key.class_set].test_images,
        }
        for key, own in scores.items()
    ]


def comparison_rows(scores: Mapping[Key, Scores]) -> list[dict[str, Any]]:
    """Trained features minus each baseline, draw by draw: mean difference, its standard error, their ratio."""
    rows = []
    for key, own in scores.items():
        if key.features == "features":
            continue
        trained = Key(**{**vars(key), "features": "features"})
        difference = (scores[trained].values - own.values)[:, 0]
        error = standard_error(difference)
        mean = float(difference.mean())
        # Differences that are all the same leave a deviation of rounding alone.
        ratio = mean / error if error > 1e-12 else None
        said = {"data": key.data, "class_set": key.class_set, "baseline": key.features, "classifier": key.classifier}
        rows.append({**said, "shots": key.shots, "difference": mean, "standard_error": error, "standard_errors": ratio})
    return rows


def metrics(rows: list[dict[str, Any]]) -> dict[str, float]:
    """For example `features/all/10_shot`; other classifiers end in their names, several data sets begin with theirs."""
    several = len({row["data"] for row in rows}) > 1
    return {
        f"{row['data'] + '/' if several else ''}{row['features']}/{row['class_set']}/{row['shots']}_shot"
        f"{CLASSIFIERS[row['classifier']]}": row["accuracy"]
        for row in rows
    }


def standard_error(values: NDArray[np.float64]) -> float:
    """Of a mean of values [n]."""
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def _middle(regularisation: NDArray[np.float64]) -> float | None:
    middle = float(np.median(regularisation))
    return middle if np.isfinite(middle) else None
