"""The images that a few draws look at, out of many: of the others no features are needed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from stages.classifiers.config import ClassifierSettings
from stages.classifiers.draws import Places, members, permutations
from stages.classifiers.evaluate import Problem
from stages.frozen.store import Images


def drawn_places(
    settings: ClassifierSettings, class_sets: Iterable[Sequence[int]], labels: NDArray[np.int64]
) -> Places:
    """Positions, rising, of all images with these labels [N] that the draws of any of the sets of classes look at."""
    found = [np.zeros(0, dtype=np.int64)]
    for classes in class_sets:
        own = members(labels, classes)
        for seed in range(settings.draws):
            found += [places[: settings.most_images] for places in permutations(own, seed)]
    return np.unique(np.concatenate(found))


class DrawnProblem(Problem):
    """A problem of whose images to draw from only those are there that are drawn.

    `pool` are these; `places` [n], which rise, say where they lie among all, whose labels are `labels` [N]. What is
    drawn is the same as where all are there; an image that is not (it could not be decoded) is passed over.
    """

    def __init__(
        self,
        settings: ClassifierSettings,
        pool: Images,
        test: Images,
        classes: Sequence[int],
        *,
        places: Places,
        labels: NDArray[np.int64],
    ) -> None:
        super().__init__(pool, test, classes)
        self._most, self._places = settings.most_images, places
        self._all = members(labels, classes)

    def permuted(self, seed: int) -> list[Places]:
        """The rows to draw of each class, in the order in which a seed draws them, as many as any draw looks at."""
        return [self._rows(own[: self._most]) for own in permutations(self._all, seed)]

    def _rows(self, wanted: Places) -> Places:
        return np.searchsorted(self._places, wanted[np.isin(wanted, self._places)])
