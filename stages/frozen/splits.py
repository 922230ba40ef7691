"""Which splits a few-shot evaluation learns from and measures on. Light: no torch or numpy here.

Images to draw shots from are the *pool*, those to measure on the *test* images.
"""

from __future__ import annotations

from cluster.errors import UserError
from stages.data.manifest import DatasetMeta

POOL = ("train", "held_out")
TEST = ("test", "held_out_test")


def pool_and_test(meta: DatasetMeta) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The splits of both that a data set has. Raises UserError where there are none, or images of several labels."""
    if meta.multi_label:
        raise UserError(f"data set {meta.name!r} has images of several labels: this evaluation needs one of each")
    return _present(meta, POOL), _present(meta, TEST)


def _present(meta: DatasetMeta, splits: tuple[str, ...]) -> tuple[str, ...]:
    present = tuple(name for name in splits if name in meta.splits)
    if not any(meta.split(name).count for name in present):
        raise UserError(f"data set {meta.name!r} has none of the splits {', '.join(splits)}")
    return present
