"""Regularised least squares from features onto {-1, 1}, in closed form and float64.

The formulas are those of big_vision's `evaluators/fewshot_lsr.py`. With N images of D features in X:
mean μ and deviation σ of each feature (ddof 0, plus 1e-5), Z = [(X - μ) / σ, 100], targets
Y = 2 onehot(y) - 1, and
- N ≥ D + 1: W = (ZᵀZ + λI)⁻¹ ZᵀY;
- N < D + 1: W = Zᵀ (ZZᵀ + λI)⁻¹ Y,
which are the same W. λ applies to the bias column too, where the constant of 100 makes it weak.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
BIAS = 100.0
EPSILON = 1e-5


@dataclass(frozen=True, kw_only=True)
class LinearClassifier:
    """Scores X weights + offset: the standardisation of X is folded in."""

    weights: Array
    """[D, C]."""
    offset: Array
    """[C]."""

    def predict(self, features: Array) -> NDArray[np.int64]:
        """The best-scored class of each row of `features` [M, D]."""
        return np.argmax(features @ self.weights + self.offset, axis=1)


def fit(features: Array, labels: NDArray[np.int64], classes: int, regularisation: float) -> LinearClassifier:
    """Fit to `features` [N, D] with `labels` [N] in 0 .. classes - 1."""
    mean: Array = features.mean(axis=0, dtype=np.float64)
    deviation: Array = features.std(axis=0, dtype=np.float64) + EPSILON
    standardised = np.concatenate([(features - mean) / deviation, np.full((len(features), 1), BIAS)], axis=1)
    targets = 2.0 * np.eye(classes)[labels] - 1.0
    count, columns = standardised.shape
    solve = primal if count >= columns else dual
    weights = solve(standardised, targets, regularisation)
    scaled = weights[:-1] / deviation[:, None]
    return LinearClassifier(weights=scaled, offset=BIAS * weights[-1] - mean @ scaled)


def primal(design: Array, targets: Array, regularisation: float) -> Array:
    """(ZᵀZ + λI)⁻¹ ZᵀY: one system with a row for each feature."""
    return np.linalg.solve(_with_diagonal(design.T @ design, regularisation), design.T @ targets)


def dual(design: Array, targets: Array, regularisation: float) -> Array:
    """Zᵀ (ZZᵀ + λI)⁻¹ Y: one system with a row for each image."""
    return design.T @ np.linalg.solve(_with_diagonal(design @ design.T, regularisation), targets)


def _with_diagonal(gram: Array, value: float) -> Array:
    gram[np.diag_indices_from(gram)] += value
    return gram
