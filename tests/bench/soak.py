"""A long training's reading in miniature: `make bench-soak`, or `python -m tests.bench.soak [--samples N]`.

Small pictures in 1,000 tars in a SeaweedFS of its own, read from there by the loader of the training loop through a
cache of a tenth of the tars' size, shards fetched ahead: one epoch and a part of the next. Each picture shows its own
number, so that it is seen whether each sample comes once in an epoch, with its label. All along, this process's memory,
descriptors, cache and temporary files are looked at. A sample takes 2 KB of disk in its tar, and a fifth more is
needed. With fewer samples everything else is smaller in proportion. The last line is JSON; exits with 1 where memory
grows in the second half or is more than docs/data.md says, the cache exceeds its limit by more than the files that are
being fetched, a file is left or left open, or a sample is missing, comes twice, or has another's label.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.environment import in_force
from cluster.local import servers
from cluster.local.processes import stop
from cluster.local.stack import Stack
from cluster.storage import Storage, open_storage
from cluster.storage.transfer import PARTS_AT_ONCE, PIECE_BYTES
from stages.context import Output
from stages.data.config import DataConfig
from stages.data.fetch_ahead import THREADS
from stages.data.manifest import Split, dataset_meta
from tests.bench.soak_data import LABELS, SIZE, Seen, make_dataset, picture
from tests.bench.soak_watch import Watch, open_files

SAMPLES, SHARDS, EPOCHS, BATCH, READERS, LOOKS = 10_000_000, 1_000, 1.1, 1024, 2, 400
LEAST = 200_000
"""Samples below which all decoded images would fit into memory, and be kept there."""
WINDOW_OF = 16_384 / SAMPLES
"""The default window beside the samples of the whole soak."""
GROWN, GROWN_SHARE = 10e6, 0.01
"""Bytes that memory may grow by in the second half, or part of what there is at the end, whichever is more."""
OF_LIBRARIES, AROUND_AN_IMAGE = 32e6, 500
"""Bytes that docs/data.md allows for what threads, connections and libraries take for themselves at their first use,
and for what is around an image that is being filled in."""


def main() -> None:
    """Make the data set, read it, print what was seen, and exit with 1 where something is not as it should be."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--epochs", type=float, default=EPOCHS)
    options = parser.parse_args()
    if options.samples < LEAST:
        parser.error(f"--samples {options.samples}: at least {LEAST:,}, of which not all can be kept in memory")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    home = Path(tempfile.mkdtemp(prefix="patchline-soak-"))
    try:
        check_disk(home, options.samples)
        with server(home) as storage:
            began = time.monotonic()
            dataset = make_dataset(storage, options.samples, SHARDS, processes=os.cpu_count() or 1)
            made = dataset_meta(dataset).split("train").bytes
            print(f"{made / 1e9:.2f} GB in {SHARDS} tars, {time.monotonic() - began:.0f} s", flush=True)
            found, wrong = soak(storage, dataset, home, options.epochs)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    print(json.dumps(found))
    sys.exit(f"wrong: {'; '.join(wrong)}" if wrong else 0)


def check_disk(home: Path, samples: int) -> None:
    """Exits where the tars and the cache do not fit."""
    needed, free = int(1.2 * 2048 * samples), shutil.disk_usage(home).free
    if needed > free:
        sys.exit(f"{home}: {samples:,} samples need {needed / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free")


@contextmanager
def server(home: Path) -> Iterator[Storage]:
    """A SeaweedFS whose data lies in `home`, for as long as the block lasts."""
    (home / "logs").mkdir()
    own = servers.Secrets(access_key=secrets.token_hex(10), secret_key=secrets.token_hex(20), ray_token="")
    process, ports = servers.start_s3(home, own, {})
    stack = Stack(home=str(home), temporary=str(home), secrets=own, ports=ports)
    print(f"SeaweedFS is process {process.pid}", flush=True)
    try:
        with in_force(stack.s3_environment()):
            deadline = time.monotonic() + 60
            while not servers.s3_works(stack.s3_endpoint):
                if not process.alive or time.monotonic() > deadline:
                    sys.exit(f"SeaweedFS does not work: {Path(process.log).read_text()[-2000:]}")
                time.sleep(0.2)
            yield open_storage(stack.root)
    finally:
        stop(process)


def soak(storage: Storage, dataset: Output, home: Path, epochs: float) -> tuple[dict[str, Any], list[str]]:
    """Read the data set; returns what was seen, and what is wrong with it."""
    from stages.data.loader import TrainLoader
    from stages.data.native.helper import native

    # The helper is compiled once for a user, below the temporary folder that all share.
    native()
    split = dataset_meta(dataset).split("train")
    cache, temporary = home / "cache", home / "temporary"
    for folder in (cache, temporary):
        folder.mkdir(mode=0o700)
    tempfile.tempdir = str(temporary)
    limit = split.bytes // 10
    config = DataConfig(
        window=round(WINDOW_OF * split.count), crop_area=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=False,
        loader_threads=READERS, cache=str(cache), cache_gigabytes=limit / 1e9,
    )  # fmt: skip
    watch, seen = Watch(cache, temporary), Seen(split.count)
    before, base = open_files(), watch.look(0).own
    watch.seen.clear()
    updates, began = int(epochs * split.count) // BATCH, time.monotonic()
    with TrainLoader(
        storage, dataset, ("train",), config, resolution=SIZE, seed=0, global_batch=BATCH, rank=0, world_size=1,
        start=0, classes=range(LABELS),
    ) as loader:  # fmt: skip
        for update in range(updates):
            batch = next(loader)
            seen.add(batch.samples, batch.images.numpy(), batch.labels.numpy())
            if update % max(1, updates // LOOKS) == 0 or update == updates - 1:
                tell(watch, (update + 1) * BATCH, began)
    seconds = time.monotonic() - began
    after = open_files()
    found = {
        "samples": updates * BATCH, "samples_per_s": round(updates * BATCH / seconds),
        "exact": not any(seen.wrong.values()), "wrong": seen.wrong,
        "cache_bytes_max": watch.most("cached"), "folder_bytes_max": watch.most("folder"), "cache_limit": limit,
        "evicted_bytes_max": watch.most("evicted"), "files_max": watch.most("files"),
        "descriptors_max": watch.most("descriptors"), "open_files_left": len(after) - len(before),
        "threads_max": watch.most("threads"), "rss_mb_at_10": round(watch.at("rss", 0.1) / 1e6, 1),
        "rss_mb_at_end": round(watch.at("rss", 1) / 1e6, 1), "rss_mb_max": round(watch.most("rss") / 1e6, 1),
        "own_mb_before": round(base / 1e6, 1), "own_mb_at_end": round(watch.at("own", 1) / 1e6, 1),
        "loader_mb_max": round((watch.most("own") - base) / 1e6, 1),
        "loader_mb_stated": round(stated(config, split) / 1e6, 1),
        "growth_mb_per_million": round(watch.growth("own"), 3), "leftovers": watch.left(),
    }  # fmt: skip
    return found, wrong_with(found, watch, split.bytes / split.shards)


def stated(config: DataConfig, split: Split) -> float:
    """Bytes that docs/data.md says a loader holds, of tars and images that are all alike."""
    samples = split.count / split.shards
    batches = (config.read_ahead + 2) * BATCH * (SIZE * SIZE * 3 + 8)
    read = BATCH * (len(picture(0)) + AROUND_AN_IMAGE)
    indexes = max(128, 4 * config.streams) * 16 * samples
    order = 2 * config.streams * config.window * 8 + 56 * split.shards
    fetched = 2 * (THREADS + READERS) * PARTS_AT_ONCE * PIECE_BYTES
    return batches + read + indexes + order + fetched + OF_LIBRARIES


def tell(watch: Watch, samples: int, began: float) -> None:
    """Look, and print one look in twenty."""
    held = watch.look(samples)
    if len(watch.seen) % 20 == 1:
        rate = samples / (time.monotonic() - began)
        print(
            f"{samples:>12,} samples  {rate:,.0f}/s  rss {held.rss / 1e6:.0f} MB, own {held.own / 1e6:.0f} MB  "
            f"cache {held.cached / 1e6:,.0f} MB in {held.files} files, {held.evicted / 1e6:,.0f} MB evicted and open  "
            f"{held.descriptors} descriptors, {held.threads} threads",
            flush=True,
        )


def wrong_with(found: dict[str, Any], watch: Watch, tar: float) -> list[str]:
    """What is not as it should be."""
    half = watch.seen[-1].samples - watch.seen[len(watch.seen) // 2].samples
    grown, allowed = watch.growth("own") * half, max(GROWN, GROWN_SHARE * watch.at("own", 1))
    fetched = (THREADS + READERS) * tar
    checks = {
        f"memory grew by {grown / 1e6:.1f} MB": grown > allowed,
        "the loader holds more than is stated": found["loader_mb_max"] > found["loader_mb_stated"],
        "the cache exceeded its limit": found["folder_bytes_max"] > found["cache_limit"] + fetched,
        "files are left": bool(found["leftovers"]),
        "files are left open": found["open_files_left"] > 0,
        "samples are not each there once": not found["exact"],
    }
    return [what for what, so in checks.items() if so]


if __name__ == "__main__":
    main()
