"""Regularised least squares from features onto {-1, 1}, in closed form and float64.

The formulas are those of big_vision's `evaluators/fewshot_lsr.py`. With N images of D features in X:
mean μ and deviation σ of each feature (ddof 0, plus 1e-5), Z = [(X - μ) / σ, 100], targets
Y = 2 onehot(y) - 1, and
- N ≥ D + 1: W = (ZᵀZ + λI)⁻¹ ZᵀY;
- N < D + 1: W = Zᵀ (ZZᵀ + λI)⁻¹ Y,
which are the same W. λ applies to the bias column too, where the constant of 100 makes it weak.

The standardised columns sum to 0, so that they are orthogonal to the bias column, and its weights stand alone:
w = 100 Σy / (10⁴ N + λ). What follows is of the other columns, and ZᵀY is twice each class's sum of rows. One λ takes
a Cholesky decomposition; for several, the matrix is decomposed into eigenvectors once, which serve all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from stages.classifiers.linear import LinearClassifier
from stages.classifiers.moments import EPSILON, Moments, moments_about_mean

Array = NDArray[np.floating[Any]]
BIAS = 100.0
LEAST_BLOCK, BLOCK = 128, 1024
"""Fewest and most rows whose errors are computed together."""
AT_ONCE = 2**21
"""Numbers that are in memory for that, unless the fewest rows need more."""
PRECISION = 1e-13
"""Of the largest: what is smaller changes nothing."""


class System(Protocol):
    """The least squares of some images, for any λ."""

    def fit(self, regularisation: float) -> LinearClassifier:
        """For one λ."""
        ...

    def path(self, regularisations: Sequence[float]) -> Iterator[LinearClassifier]:
        """For several, in turn."""
        ...

    def leave_one_out(self, regularisations: Sequence[float]) -> NDArray[np.float64]:
        """For each λ the mean squared error, over images and classes, of what the others say of each image.

        In closed form: (y - ŷ) / (1 - h), h the diagonal of Z (ZᵀZ + λI)⁻¹ Zᵀ. μ and σ stay those of all images.
        """
        ...


def system(features: Array, labels: NDArray[np.int64], classes: int, moments: Moments | None = None) -> System:
    """That of `features` [N, D] with `labels` [N], rising, in 0 .. classes - 1.

    `moments` are those of the same images where they are known already.
    """
    count, width = features.shape
    if count < width + 1:
        return Dual(features, labels, classes)
    if moments is None or not moments.are_exact():
        moments = moments_about_mean(features, labels, classes)
    return Primal(features, labels, moments)


def fit(features: Array, labels: NDArray[np.int64], classes: int, regularisation: float) -> LinearClassifier:
    """The classifier of `features` [N, D] with `labels` [N], in any order, in 0 .. classes - 1."""
    order = np.argsort(labels, kind="stable")
    return system(features[order], labels[order], classes).fit(regularisation)


class Primal:
    """(ZᵀZ + λI)⁻¹ ZᵀY: one equation for each feature."""

    def __init__(self, features: Array, labels: NDArray[np.int64], moments: Moments) -> None:
        self._features, self._labels, self._moments = features, labels, moments
        self._scale = _Scale(moments.mean, moments.deviation, moments.class_counts)

    def fit(self, regularisation: float) -> LinearClassifier:
        gram = self._moments.gram()
        _add_to_diagonal(gram, regularisation)
        factor = cho_factor(gram, lower=True, overwrite_a=True, check_finite=False)
        weights = cho_solve(factor, 2.0 * self._moments.class_sums().T, overwrite_b=True, check_finite=False)
        return self._scale.classifier(weights, regularisation)

    def path(self, regularisations: Sequence[float]) -> Iterator[LinearClassifier]:
        values, vectors, projected = self._spectrum
        for regularisation in regularisations:
            weights = vectors @ (projected / (values + regularisation)[:, None])
            yield self._scale.classifier(weights, regularisation)

    def leave_one_out(self, regularisations: Sequence[float]) -> NDArray[np.float64]:
        values, vectors, projected = self._spectrum
        classes = projected.shape[1]
        lever = np.stack([1 / (values + regularisation) for regularisation in regularisations], axis=1)
        bias_hat = np.array([self._scale.bias_hat(regularisation) for regularisation in regularisations])
        residuals = _Residuals(self._scale, projected, values, regularisations)
        found = np.zeros(len(regularisations))
        size = max(LEAST_BLOCK, min(BLOCK, AT_ONCE // (residuals.terms * classes)))
        for start in range(0, len(self._labels), size):
            rows = self._scale.standardised(self._features[start : start + size]) @ vectors
            squares = residuals.squares(rows, self._labels[start : start + size])
            found += (squares / (1 - np.square(rows) @ lever - bias_hat).T ** 2).sum(axis=1)
        return found / (len(self._labels) * classes)

    @cached_property
    def _spectrum(self) -> tuple[Array, Array, Array]:
        """Eigenvalues [D], eigenvectors [D, D], and what ZᵀY [D, C] is in them."""
        values, vectors = _eigen(self._moments.gram())
        return values, vectors, 2.0 * (vectors.T @ self._moments.class_sums().T)


class Dual:
    """Zᵀ (ZZᵀ + λI)⁻¹ Y: one equation for each image."""

    def __init__(self, features: Array, labels: NDArray[np.int64], classes: int) -> None:
        mean = features.mean(axis=0, dtype=np.float64)
        counts = np.bincount(labels, minlength=classes)
        # Not `features.std`, whose own mean would be rounded to the features' precision.
        deviation = np.sqrt(np.square(np.subtract(features, mean, dtype=np.float64)).mean(axis=0)) + EPSILON
        self._labels = labels
        self._scale = _Scale(mean, deviation, counts)
        self._design = self._scale.standardised(features)

    def fit(self, regularisation: float) -> LinearClassifier:
        gram = self._design @ self._design.T
        _add_to_diagonal(gram, regularisation)
        factor = cho_factor(gram, lower=True, overwrite_a=True, check_finite=False)
        solved = cho_solve(factor, self._targets(), overwrite_b=True, check_finite=False)
        return self._scale.classifier(self._design.T @ solved, regularisation)

    def path(self, regularisations: Sequence[float]) -> Iterator[LinearClassifier]:
        values, vectors, projected = self._spectrum
        classes, width = projected.shape[1], self._design.shape[1]
        # Of many classifiers each is one product the less for it.
        back = self._design.T @ vectors if len(regularisations) * classes > width else None
        for regularisation in regularisations:
            own = projected / (values + regularisation)[:, None]
            weights = self._design.T @ (vectors @ own) if back is None else back @ own
            yield self._scale.classifier(weights, regularisation)

    def leave_one_out(self, regularisations: Sequence[float]) -> NDArray[np.float64]:
        # (y - ŷ) / (1 - h) = c / g, with c = (ZZᵀ + λI)⁻¹ Y and g the diagonal of that inverse (Rifkin and Lippert,
        # 2007): neither is a difference of nearly equal numbers where the fit is nearly perfect.
        values, vectors, projected = self._spectrum
        count, squares = len(values), np.square(vectors)
        mean = (2.0 * self._scale.class_counts - count) / count
        found = []
        for regularisation in regularisations:
            lever = 1 / (values + regularisation)
            # The bias column adds 10⁴ to the eigenvalue of the vector of ones, which is 0 without it.
            bias = 1 / (BIAS**2 * count + regularisation)
            solved = vectors @ (projected * lever[:, None]) + mean * bias
            inverse = squares @ lever - (1 / regularisation - bias) / count
            found.append((np.einsum("nc,nc->n", solved, solved) / inverse**2).sum())
        return np.array(found) / (count * len(mean))

    @cached_property
    def _spectrum(self) -> tuple[Array, Array, Array]:
        """Eigenvalues [N], eigenvectors [N, N], and what the targets [N, C], their means taken off, are in them."""
        values, vectors = _eigen(self._design @ self._design.T)
        return values, vectors, vectors.T @ self._targets()

    def _targets(self) -> Array:
        """Y less its columns' means: what is constant over the images is the bias column's."""
        targets = np.zeros((len(self._labels), len(self._scale.class_counts)))
        targets[np.arange(len(targets)), self._labels] = 2.0
        targets -= 2.0 * self._scale.class_counts / len(targets)
        return targets


class _Residuals:
    """‖ŷ - y‖² of rows in the eigenvectors, for every λ, from few products.

    ŷ(λ) is the rows times ZᵀY, each eigenvector's part divided by its value plus λ. As functions of the value, these
    quotients are alike: those for 30 values of λ are sums of ten or twenty, but for float64's last digits. So there is
    one product for each of these, and sums of them for each λ.
    """

    def __init__(self, scale: _Scale, projected: Array, values: Array, regularisations: Sequence[float]) -> None:
        least = min(regularisations)
        # Each value's quotient for the least λ is taken out, so that all of them count by what they say of ŷ.
        quotients = (values[:, None] + least) / (values[:, None] + np.array(regularisations))
        basis, sizes, coefficients = np.linalg.svd(quotients, full_matrices=False)
        kept = sizes > PRECISION * sizes[0]
        self._basis = np.ascontiguousarray((basis[:, kept] / (values[:, None] + least)).T)
        self._projected, self._counts = projected, 2.0 * scale.class_counts - scale.class_counts.sum()
        shares = [BIAS**2 / (BIAS**2 * scale.class_counts.sum() + regularisation) for regularisation in regularisations]
        # The bias column's part is these shares of the counts, and y itself is the last term.
        sums = [(sizes[:, None] * coefficients)[kept], np.array(shares)[None], np.full((1, len(shares)), -1.0)]
        self._sums = np.concatenate(sums).T.copy()
        self.terms = self._sums.shape[1]
        self._memory = np.empty(0)

    def _room(self, rows: int) -> Array:
        """Memory for the terms, the same in every call: new memory would have to be zeroed by the kernel."""
        needed = self.terms * rows * self._projected.shape[1]
        if len(self._memory) < needed:
            self._memory = np.empty(needed)
        return self._memory[:needed].reshape(self.terms, rows, -1)

    def squares(self, rows: Array, labels: NDArray[np.int64]) -> Array:
        """Of rows [b, D] with their labels, for each λ: [L, b]."""
        count, classes = len(rows), self._projected.shape[1]
        terms = self._room(count)
        for number, own in enumerate(self._basis):
            np.matmul(rows * own, self._projected, out=terms[number])
        terms[-2] = self._counts
        terms[-1] = -1.0
        terms[-1, np.arange(count), labels] = 1.0
        flat, found = terms.reshape(self.terms, -1), []
        few = max(1, AT_ONCE // (2 * len(self._sums) * classes))
        for start in range(0, count, few):
            residuals = (self._sums @ flat[:, start * classes : (start + few) * classes]).reshape(
                len(self._sums), -1, classes
            )
            found.append(np.einsum("lbc,lbc->lb", residuals, residuals))
        return np.concatenate(found, axis=1)


@dataclass(frozen=True)
class _Scale:
    """How features are standardised, and the part of the solution that is the bias column's."""

    mean: Array
    deviation: Array
    class_counts: NDArray[np.int64]

    def standardised(self, features: Array) -> Array:
        found = np.subtract(features, self.mean, dtype=np.float64)
        found /= self.deviation
        return found

    def bias(self, regularisation: float) -> Array:
        """What the bias column adds to each class's score [C]."""
        count = self.class_counts.sum()
        return BIAS**2 * (2.0 * self.class_counts - count) / (BIAS**2 * count + regularisation)

    def bias_hat(self, regularisation: float) -> float:
        """What the bias column adds to the diagonal of the hat matrix."""
        return float(BIAS**2 / (BIAS**2 * self.class_counts.sum() + regularisation))

    def classifier(self, weights: Array, regularisation: float) -> LinearClassifier:
        """From weights [D, C] of standardised features, which are overwritten."""
        weights /= self.deviation[:, None]
        return LinearClassifier(centre=self.mean, weights=weights, offset=self.bias(regularisation))


def _eigen(gram: Array) -> tuple[Array, Array]:
    """Eigenvalues, none below 0, and eigenvectors of a symmetric matrix."""
    # numpy's and not scipy's, which has threads of its own: while either's wait for work they take the other's cores.
    values, vectors = np.linalg.eigh(gram)
    return np.maximum(values, 0.0), vectors


def _add_to_diagonal(gram: Array, value: float) -> None:
    gram[np.diag_indices_from(gram)] += value
