"""A linear probe: multinomial logistic regression on frozen features.

It makes Σ -log softmax(Z W + b)[y] + λ/2 ‖W‖² least, with Z standardised as for least squares and b free, by L-BFGS
from zeros, in float64: scikit-learn's `LogisticRegression` with C = 1 / λ, as CLIP's probe (Radford et al., 2021).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp

from stages.classifiers.linear import LinearClassifier
from stages.classifiers.moments import EPSILON

Array = NDArray[np.floating[Any]]
ITERATIONS = 1000
"""Most steps, as CLIP's."""
TOLERANCE = 1e-7
"""Of the gradient's largest component, divided by the number of images: below it the steps end."""


def probe(features: Array, labels: NDArray[np.int64], classes: int, regularisation: float) -> LinearClassifier:
    """The classifier of `features` [N, D] with `labels` [N] in 0 .. classes - 1."""
    mean = features.mean(axis=0, dtype=np.float64)
    design = np.subtract(features, mean, dtype=np.float64)
    deviation = np.sqrt(np.square(design).mean(axis=0)) + EPSILON
    design /= deviation
    count, width = design.shape
    every = np.arange(count)

    def loss(flat: Array) -> tuple[float, Array]:
        table = flat.reshape(width + 1, classes)
        weights, scores = table[:-1], design @ table[:-1] + table[-1]
        scores -= logsumexp(scores, axis=1, keepdims=True)
        value = -scores[every, labels].sum() + regularisation / 2 * np.vdot(weights, weights)
        slopes = np.exp(scores)
        slopes[every, labels] -= 1.0
        gradient = np.concatenate([design.T @ slopes + regularisation * weights, slopes.sum(axis=0)[None]])
        return float(value) / count, gradient.ravel() / count

    options = {"maxiter": ITERATIONS, "maxfun": 2 * ITERATIONS, "gtol": TOLERANCE, "ftol": 0.0}
    start = np.zeros((width + 1) * classes)
    table = minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x.reshape(width + 1, classes)
    return LinearClassifier(centre=mean, weights=table[:-1] / deviation[:, None], offset=table[-1])
