"""How far a window is from a full shuffle, on shards that are sorted by class: `make bench-shuffle`, or
`python -m tests.bench.shuffle`.

A data set of ImageNet's size (1,000 classes of 1,281 images, shards of 6,500, sorted by class) is read in
the order of several numbers of streams and windows. Printed are, for batches of 4,096 at 40 positions of an
epoch: the entropy of the classes in a batch, as a part of that of a full shuffle's batches; the mean length
of runs of one class (1.001 in a full shuffle); how far the classes of one batch are from those of the next
(total variation, 0 to 1); and the shards that are open at once. The last line is JSON.
"""

from __future__ import annotations

import json

import numpy as np
from numpy.typing import NDArray

from stages.data.config import DataConfig
from stages.data.order import Order

CLASSES, PER_CLASS, SHARD, BATCH, POSITIONS = 1000, 1281, 6500, 4096, 40


def main() -> None:
    """Print the table, and the defaults' figures as JSON."""
    total = CLASSES * PER_CLASS
    counts = np.array([min(SHARD, total - start) for start in range(0, total, SHARD)])
    starts = np.cumsum(counts) - counts
    full = quality(np.random.default_rng(0).permutation(total) // PER_CLASS)
    print(f"{'streams':>8} {'window':>8} {'entropy':>9} {'run':>7} {'distance':>9} {'shards open':>12}")
    print(f"{'full shuffle':>17} {1:>9.4f} {full[1]:>7.3f} {full[2]:>9.3f} {len(counts):>12}")
    defaults, found = DataConfig(), {}
    for streams in (1, 8, 16, 32, 64):
        for window in (1024, 4096, 16384, 65536):
            order = Order(counts=counts, seed=0, streams=streams, window=window)
            _, shards, indices = order.locate(range(total))
            entropy, run, distance = quality((starts[shards] + indices) // PER_CLASS)
            opened = opened_at_once(shards, streams * window)
            print(f"{streams:>8} {window:>8} {entropy / full[0]:>9.4f} {run:>7.3f} {distance:>9.3f} {opened:>12}")
            if (streams, window) == (defaults.streams, defaults.window):
                found = {"streams": streams, "window": window, "entropy": round(entropy / full[0], 4),
                         "run": round(run, 3), "distance": round(distance, 3), "shards_open": opened}  # fmt: skip
    print(json.dumps(found))


def quality(classes: NDArray[np.int64]) -> tuple[float, float, float]:
    """Entropy in bits of a batch, mean length of runs, and distance between neighbouring batches, as means."""
    positions = np.linspace(0, len(classes) - 2 * BATCH, POSITIONS).astype(int)
    entropies, distances = [], []
    for start in positions:
        here, after = (
            np.bincount(classes[first : first + BATCH], minlength=CLASSES) / BATCH for first in (start, start + BATCH)
        )
        some = here[here > 0]
        entropies.append(float(-(some * np.log2(some)).sum()))
        distances.append(float(np.abs(here - after).sum() / 2))
    runs = len(classes) / (1 + np.count_nonzero(np.diff(classes)))
    return float(np.mean(entropies)), float(runs), float(np.mean(distances))


def opened_at_once(shards: NDArray[np.int64], span: int) -> int:
    """The most shards that samples of one round of windows come from."""
    return max(len(np.unique(shards[start : start + span])) for start in range(0, len(shards), max(1, span)))


if __name__ == "__main__":
    main()
