"""Few-shot accuracies of one kind of features on one set of classes, draw by draw."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.errors import UserError
from stages.classifiers.config import Classifier, ClassifierSettings
from stages.classifiers.draws import Places, between, members, permutations
from stages.classifiers.least_squares import System, system
from stages.classifiers.linear import LinearClassifier, accuracies
from stages.classifiers.moments import Moments
from stages.classifiers.neighbours import neighbour_predictions
from stages.classifiers.probe import probe
from stages.classifiers.selection import best
from stages.frozen.store import Images

Array = NDArray[np.floating[Any]]
TOGETHER = 4
"""Classifiers whose predictions are made in one pass over the images."""


class Problem:
    """The images of some classes, which are called 0 .. C - 1 in the order given."""

    def __init__(self, pool: Images, test: Images, classes: Sequence[int]) -> None:
        self.classes = len(classes)
        self.pool, self._draws = pool.features, members(pool.labels, classes)
        self.labels, inside = _called(pool.labels, classes), _called(test.labels, classes)
        rows = inside >= 0
        self.truth = inside[rows]
        # Not copied where it is all of them.
        self.test = test.features if rows.all() else test.features[rows]

    def permuted(self, seed: int) -> list[Places]:
        """The images to draw of each class, in the order in which a seed draws them."""
        return permutations(self._draws, seed)

    @cached_property
    def centre(self) -> Array:
        """Of the images to draw from: whatever lies near them."""
        return self.pool[np.sort(np.concatenate(self._draws))[:10_000]].mean(axis=0, dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Test accuracies [draws, L], and the λ of each; L is 1 but where the choice among candidates is still to come."""

    values: NDArray[np.float64]
    regularisation: NDArray[np.float64]


Found = dict[int, tuple[Sequence[float], Sequence[float]]]
"""By number of shots: accuracies, and their λ."""


def evaluate(config: ClassifierSettings, problem: Problem) -> dict[tuple[Classifier, int], Scores]:
    """By classifier and number of shots."""
    found: dict[tuple[Classifier, int], list[tuple[Sequence[float], Sequence[float]]]] = {}
    for seed in range(config.draws):
        permuted = problem.permuted(seed)
        for name in config.classifiers:
            for shots, own in METHODS[name](config, problem, permuted).items():
                found.setdefault((name, shots), []).append(own)
    return {
        key: Scores(values=np.array([v for v, _ in draws]), regularisation=np.array([r for _, r in draws]))
        for key, draws in found.items()
    }


def _least_squares(config: ClassifierSettings, problem: Problem, permuted: Sequence[Places]) -> Found:
    if config.regularisation_by == "global_rank":
        return {
            shots: (_test(problem, own.path(config.candidates)), config.candidates)
            for shots, own in _systems(config, problem, permuted)
        }
    fitted, chosen = [], []
    for _, own in _systems(config, problem, permuted):
        regularisation = _choose(config, problem, permuted, own)
        chosen.append(regularisation)
        several = config.regularisation_by != "fixed"
        fitted.append(next(iter(own.path([regularisation]))) if several else own.fit(regularisation))
    values = _test(problem, fitted)
    return {s: ([v], [r]) for s, v, r in zip(sorted(config.shots), values, chosen, strict=True)}


def _systems(config: ClassifierSettings, problem: Problem, permuted: Sequence[Places]) -> Iterator[tuple[int, System]]:
    """The least squares of each number of shots; more shots add to the sums of fewer."""
    width, done, moments = problem.pool.shape[1], 0, None
    if len(between(permuted, 0, max(config.shots))) > width:
        moments = Moments(problem.centre, problem.classes)
    for shots in sorted(config.shots):
        if moments is not None:
            further = between(permuted, done, shots)
            moments.add(problem.pool[further], problem.labels[further])
            done = shots
        chosen = between(permuted, 0, shots)
        yield shots, system(problem.pool[chosen], problem.labels[chosen], problem.classes, moments)


def _choose(config: ClassifierSettings, problem: Problem, permuted: Sequence[Places], own: System) -> float:
    if config.regularisation_by == "fixed":
        return config.regularisation
    if config.regularisation_by == "leave_one_out":
        return best(config.candidates, -own.leave_one_out(config.candidates))
    most = max(config.shots)
    rows = between(permuted, most, most + config.validation_images)
    if not len(rows):
        raise UserError(
            f"regularisation_by=validation: no class has more than shots={most} images to draw from, so that none are "
            "left to choose lambda by: take fewer shots, or leave_one_out"
        )
    features, truth = problem.pool[rows], problem.labels[rows]
    return best(config.candidates, np.array(_measure(features, truth, own.path(config.candidates))))


def _neighbours(config: ClassifierSettings, problem: Problem, permuted: Sequence[Places]) -> Found:
    shots, edges = sorted(config.shots), [0, *sorted(config.shots)]
    steps = [between(permuted, start, stop) for start, stop in zip(edges, shots, strict=False)]
    few, counts = np.concatenate(steps), np.cumsum([len(step) for step in steps]).tolist()
    predicted = neighbour_predictions(
        problem.test, problem.pool[few], problem.labels[few], counts,
        classes=problem.classes, neighbours=config.neighbours, temperature=config.temperature,
    )  # fmt: skip
    right = (predicted == problem.truth).mean(axis=1).tolist()
    return {count: ([value], [np.nan]) for count, value in zip(shots, right, strict=True)}


def _linear_probe(config: ClassifierSettings, problem: Problem, permuted: Sequence[Places]) -> Found:
    shots, regularisation = sorted(config.shots), config.probe_regularisation
    rows = [between(permuted, 0, count) for count in shots]
    fitted = (probe(problem.pool[own], problem.labels[own], problem.classes, regularisation) for own in rows)
    return {s: ([v], [regularisation]) for s, v in zip(shots, _test(problem, fitted), strict=True)}


METHODS: dict[Classifier, Callable[[ClassifierSettings, Problem, Sequence[Places]], Found]] = {
    "least_squares": _least_squares,
    "neighbours": _neighbours,
    "linear_probe": _linear_probe,
}


def _test(problem: Problem, classifiers: Iterable[LinearClassifier]) -> list[float]:
    return _measure(problem.test, problem.truth, classifiers)


def _measure(
    features: NDArray[np.float32], truth: NDArray[np.int64], classifiers: Iterable[LinearClassifier]
) -> list[float]:
    remaining, found = iter(classifiers), list[float]()
    while few := list(islice(remaining, TOGETHER)):
        found += accuracies(features, truth, few).tolist()
    return found


def _called(labels: NDArray[np.int64], classes: Sequence[int]) -> NDArray[np.int64]:
    """Labels as places in `classes`, -1 for those of other classes."""
    table = np.full(max(*classes, int(labels.max(initial=0))) + 1, -1, dtype=np.int64)
    table[list(classes)] = np.arange(len(classes))
    return table[labels]
