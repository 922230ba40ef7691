"""Whether training waits for its images, for what they wait themselves, and what helps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stages.data.config import DataConfig

WAITING = 0.1
"""Part of the time from which on training that waits for images is bound by them."""
STORAGE = 0.5
"""Part of the loader's work that is waiting for storage, from which on that is the reason."""
SMALLER = "store smaller images (ingest.longest_side, ingest.quality)"
IN_A_ROW = 2
"""Intervals that have to be so before anybody is told: one may wait for a first shard."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """A machine as the loaders on it share it."""

    cores: int
    loaders: int
    """One for each rank there."""
    threads: int
    """Of each loader that decode."""
    native: bool
    """Whether the native helper makes the crops."""


class InputBound:
    """Tells once that a run is input-bound, when it has been so for some intervals in a row."""

    def __init__(self, config: DataConfig, host: Host) -> None:
        self._config, self._host = config, host
        # The first interval waits for the first batch, which nobody could have prepared ahead.
        self._row, self._told = -1, False

    def look(self, data_wait: float, storage_wait: float) -> str | None:
        """What is to be told after an interval with these shares, as `Meters.report` has them, if anything."""
        first, self._row = self._row < 0, self._row + 1
        if first or data_wait < WAITING:
            self._row = 0
        if self._told or self._row < IN_A_ROW:
            return None
        self._told = True
        if storage_wait >= STORAGE:
            reason = f"storage, for which the loader's threads wait {storage_wait:.0%} of theirs"
            advice = storage_advice(self._config)
        else:
            reason = f"decoding, by {threads_of(self._host)}"
            needed = math.ceil(1.1 * max(1, self._host.threads) / (1 - min(data_wait, 0.95)))
            advice = decoding_advice(self._config, self._host, needed)
        return f"input-bound: training waits for images {data_wait:.0%} of the time. The limit is {reason}: {advice}"


def thread_count(threads: int) -> str:
    """So many threads that decode, in words; where there are none the caller's own does."""
    return f"{threads} thread{'s' if threads != 1 else ''}" if threads else "the training thread"


def threads_of(host: Host) -> str:
    """The threads that decode on a machine, in words."""
    threads = thread_count(host.threads)
    each = f" for each of {host.loaders} ranks" if host.loaders > 1 else ""
    return f"{threads}{each} on {host.cores} cores"


def storage_advice(config: DataConfig) -> str:
    """What helps where storage is the limit."""
    if config.fetch == "samples":
        return "set input.fetch to shards, which come in large pieces and once"
    if not config.fetch_ahead:
        return "set input.fetch_ahead to true"
    return (
        f"keep the shards in the cache from epoch to epoch (input.cache_gigabytes, now {config.cache_gigabytes:g}, of "
        f"a fast disk), {SMALLER}, or bring the bucket nearer"
    )


def decoding_advice(config: DataConfig, host: Host, threads: int) -> str:
    """What helps where decoding is the limit and so many `threads` of each loader would be enough."""
    ways = []
    if not host.native:
        ways.append("install a C compiler and libjpeg's header for the native helper (apt install gcc libjpeg-dev)")
    share = max(1, host.cores // host.loaders)
    if min(threads, share) > host.threads:
        ways.append(f"set input.loader_threads to {min(threads, share)}")
    if share < threads:
        ways.append("take machines with more cores for each rank")
        ways.append("store smaller images (ingest.longest_side), which decode faster")
    if config.randaugment is not None:
        ways.append("use fewer layers of RandAugment, whose time is in it")
    return ", or ".join(ways or ["set input.read_ahead higher, which evens out images that take long"])
