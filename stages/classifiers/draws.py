"""Which images the few shots are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]


def draw(labels: NDArray[np.int64], classes: Sequence[int], seed: int, shots: int) -> Places:
    """Positions of `shots` images of each class, classes in the given order.

    For one seed the choices are nested: the first of 5 shots is the 1 shot. A class with fewer images gives
    all that it has. As big_vision's `fewshot_lsr.py`: one `default_rng(seed)`, one permutation per class.
    """
    return between(permutations(members(labels, classes), seed), 0, shots)


def members(labels: NDArray[np.int64], classes: Sequence[int]) -> list[Places]:
    """Positions of each class's images, rising."""
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    starts, stops = (np.searchsorted(ordered, list(classes), side=side) for side in ("left", "right"))
    return [order[start:stop] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]


def permutations(own: Sequence[Places], seed: int) -> list[Places]:
    """The images of each class in the order in which a seed draws them."""
    generator = np.random.default_rng(seed)
    return [generator.permutation(places) for places in own]


def between(permuted: Sequence[Places], start: int, stop: int) -> Places:
    """Of each class the images from number `start` of its permutation up to `stop`, as far as there are any."""
    return np.concatenate([places[start:stop] for places in permuted])
