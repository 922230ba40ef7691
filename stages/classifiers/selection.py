"""Which λ: named policies.

- `fixed`: the config's. big_vision's evaluator has 2¹⁰ for all data sets.
- `validation`: of the candidates the one of the best accuracy on images that are neither among the shots nor among
  the test images, for each draw.
- `leave_one_out`: the one of the least squared error of what the other shots say of each, for each draw; in closed
  form. Not of accuracy: of one shot of each class nothing is left.
- `global_rank`: one for all data sets, for each number of shots: the one of the best mean rank, over data sets, of
  *test* accuracy. So Google's earlier evaluator chose (scenic, `transfer/fewshot_utils.py`). Here the accuracy is the
  mean over draws, and equal ones share their mean rank.

Of equally good ones the largest is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from cluster.errors import UserError

Array = NDArray[np.floating[Any]]


def best(candidates: Sequence[float], merit: Array) -> float:
    """The candidate of the greatest merit [L]. Raises UserError where a merit is no number."""
    if np.isnan(merit).any():
        tried = ", ".join(f"{value:g}" for value, own in zip(candidates, merit, strict=True) if np.isnan(own))
        raise UserError(f"candidates={tried}: so far from 1 that nothing can be computed: take them away")
    return max(value for value, own in zip(candidates, merit.tolist(), strict=True) if own == merit.max())


def best_by_rank(candidates: Sequence[float], by_data_set: Sequence[Array]) -> float:
    """The candidate of the best mean rank over data sets, of the accuracy [L] in each."""
    return best(candidates, np.mean([rankdata(accuracy) for accuracy in by_data_set], axis=0))
