"""What it costs to know the order of a very large data set: `make bench-order`, or `python -m tests.bench.order`.

For 10^6 to 10^10 samples in shards of 10,000, read by 4,096 ranks: the time to build one rank's order at an
arbitrary position and to place its rows of one global batch, and the memory that this takes beyond the
imports. Each size is measured in a process of its own. The last line is JSON, of the largest size.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

SIZES = [10**power for power in range(6, 11)]
SECONDS, MEGABYTES = 1.0, 300.0

ONE = """
import json, resource, sys, time
import numpy as np
from stages.data.order import Order, rank_rows
from stages.data.config import DataConfig

samples, ranks, rows = int(sys.argv[1]), 4096, 16
config = DataConfig()
rng = np.random.default_rng(0)
shards = max(1, samples // 10_000)
counts = rng.integers(5_000, 15_001, shards)
counts[-1] += samples - counts.sum() if counts.sum() < samples else 0
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began = time.monotonic()
order = Order(counts=counts, seed=1, streams=config.streams, window=config.window)
start, stop = rank_rows(ranks * rows, 2_345, ranks)
position = 7 * order.total // 3
epochs, found, indices = order.locate(np.arange(position + start, position + stop))
seconds = time.monotonic() - began
memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
assert (indices < counts[found]).all() and len(found) == rows
print(json.dumps({"samples": int(order.total), "shards": shards, "seconds": round(seconds, 3),
                  "megabytes": round(memory + counts.nbytes / 2**20, 1)}))
"""


def main() -> None:
    """Measure, print, and exit with 1 where a limit is not kept."""
    results = []
    for samples in SIZES:
        done = subprocess.run(
            [sys.executable, "-c", ONE, str(samples)], stdout=subprocess.PIPE, text=True, check=True, env=os.environ
        )
        results.append(json.loads(done.stdout))
        print(f"{results[-1]['samples']:>14,} samples  {results[-1]['shards']:>9,} shards  "
              f"{results[-1]['seconds']:.3f} s  {results[-1]['megabytes']:.1f} MB", flush=True)  # fmt: skip
    print(json.dumps(results[-1]))
    sys.exit(0 if results[-1]["seconds"] <= SECONDS and results[-1]["megabytes"] <= MEGABYTES else 1)


if __name__ == "__main__":
    main()
