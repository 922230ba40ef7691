"""The formulas of few-shot evaluation as they are written down, in float64 and with no thought of speed.

big_vision's `evaluators/fewshot_lsr.py`: for each seed one generator, one permutation for each class; the first k of
each; standardised by themselves; a constant of 100; targets of -1 and 1; eigenvectors; the larger side is not inverted.
"""

from __future__ import annotations

import numpy as np


def drawn(labels, classes, seed, start, stop):
    """Places of the images number `start` to `stop` of each class's permutation, and what the classes are called."""
    generator = np.random.default_rng(seed)
    chosen = [generator.permutation(np.flatnonzero(labels == label))[start:stop] for label in range(classes)]
    return np.concatenate(chosen)


def design(few, rows):
    """Z of rows, standardised by the few."""
    few, rows = few.astype(np.float64), rows.astype(np.float64)
    standardised = (rows - few.mean(axis=0)) / (few.std(axis=0) + 1e-5)
    return np.hstack([standardised, np.full((len(rows), 1), 100.0)])


def weights(z, y, regularisation):
    """W, by the eigenvectors of the smaller side."""
    if len(z) >= z.shape[1]:
        values, vectors = np.linalg.eigh(z.T @ z)
        return (vectors / (values + regularisation)) @ (vectors.T @ (z.T @ y))
    values, vectors = np.linalg.eigh(z @ z.T)
    return (z.T @ vectors / (values + regularisation)) @ (vectors.T @ y)


def targets(labels, classes):
    return 2.0 * np.eye(classes)[labels] - 1.0


def scores(few, labels, classes, rows, regularisation):
    return design(few, rows) @ weights(design(few, few), targets(labels, classes), regularisation)


def leave_one_out(few, labels, classes, regularisation):
    """The mean squared error of what a fit without each row of Z says of it: one fit for each."""
    z, y = design(few, few), targets(labels, classes)
    errors = []
    for out in range(len(z)):
        rest = np.arange(len(z)) != out
        errors.append((y[out] - z[out] @ weights(z[rest], y[rest], regularisation)) ** 2)
    return float(np.mean(errors))


def is_tie(row, margin=1e-9):
    """Whether the two best scores are equal up to float64's own rounding."""
    ordered = np.sort(row)
    return len(ordered) > 1 and ordered[-1] - ordered[-2] <= margin * max(1.0, np.abs(row).max())
