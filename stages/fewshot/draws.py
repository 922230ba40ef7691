"""Which images the few shots are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def draw(labels: NDArray[np.int64], classes: Sequence[int], seed: int, shots: int) -> NDArray[np.int64]:
    """Positions of `shots` images of each class, classes in the given order.

    For one seed the choices are nested: the first of 5 shots is the 1 shot. A class with fewer images gives
    all that it has. As big_vision's `fewshot_lsr.py`: one `default_rng(seed)`, one permutation per class.
    """
    generator = np.random.default_rng(seed)
    chosen = [generator.permutation(np.flatnonzero(labels == label))[:shots] for label in classes]
    return np.concatenate(chosen)
