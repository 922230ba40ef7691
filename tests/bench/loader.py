"""Images/s that loaders bring as batches for training: `make bench-loader PHOTOS=DIR`, or
`python -m tests.bench.loader DIR [--rounds N] [--times N] [--only NAME,NAME] [--profile]`.

The JPEGs of a folder, with a folder for each class, in tars on the local disk; random crops at 224 pixels, batches of
64, on all cores. Ours is the loader of the training loop, with as many threads as there are cores, over the tars that
`patchline ingest` has written. *webdataset_pil* and *webdataset_turbo* (simplejpeg, OpenCV) are the usual pipelines,
*decode_limit* a DataLoader over images in memory that reads nothing; *ray_data*, *litdata* and *mosaicml_streaming*
read with Pillow. What is not installed is left out, and a line says so; for all of them:

    pip install opencv-python-headless litdata
    pip install --no-deps mosaicml-streaming && pip install brotli python-snappy xxhash zstd catalogue

The *s3* ones are ours over `--times` times the photos: *s3_local* from tars on the local disk, *s3_first_epoch* from a
SeaweedFS on this machine with an empty cache, *s3_cached* from the cache that this has filled. All take turns, each
once before it counts; medians. `--profile` says where the processor's time of ours goes, by `perf`, and compares
nothing. The last line is JSON; exits with 1 where a limit of docs/benchmarks.md is missed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

LIMITS = {
    "vs_webdataset_pil": 3.5, "vs_best_peer": 1.25, "vs_decode_limit": 1.25, "s3_first_epoch": 0.8, "s3_cached": 0.95,
}  # fmt: skip
NEEDED = {
    "webdataset_turbo": "cv2", "decode_limit": "cv2", "ray_data": "ray", "litdata": "litdata",
    "mosaicml_streaming": "streaming",
}  # fmt: skip
OURS = ("patchline", "s3_local", "s3_first_epoch", "s3_cached")
PER_TAR, PER_TAR_S3 = 128, 512
Side = Callable[[], Iterable[Any]]
"""Makes an epoch of batches; what it does before it returns is not timed."""


def main() -> None:
    """Measure, print, and exit with 1 where a limit is missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("photos", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--times", type=int, default=16)
    parser.add_argument("--only", default="")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    only = list(filter(None, options.only.split(",")))
    print(f"cores: {os.cpu_count()}, load before: {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory(prefix="patchline-bench-") as folder, ExitStack() as servers:
        sides, processes = all_sides(options, Path(folder), only, servers)
        if options.profile:
            return profiled(sides, processes)
        rates = measured(sides, options.rounds)
    found = compared({name: statistics.median(own) for name, own in rates.items()})
    print(json.dumps(found))
    missed = [
        f"{name} {found[name]}, at least {limit}" for name, limit in LIMITS.items() if found.get(name, limit) < limit
    ]
    sys.exit(f"missed: {'; '.join(missed)}" if missed else 0)


def all_sides(
    options: argparse.Namespace, folder: Path, only: list[str], servers: ExitStack
) -> tuple[dict[str, Side], list[int]]:
    """The sides by name, in the order of their turns, and the ids of the processes that ours run in."""
    import torch

    from tests.bench.loader_ours import Epochs, Repeated, ingest, s3, several_times
    from tests.bench.loader_peers import PEERS

    torch.set_num_threads(1)
    photos, processes = sorted(options.photos.glob("*/*.jpg")), [os.getpid()]
    ours = Epochs(*ingest(options.photos, folder / "root", PER_TAR))
    sides: dict[str, Side] = {"patchline": lambda: ours.next(folder / "cache")}
    tars = make_tars(photos, folder / "tars")
    for name, peer in PEERS.items():
        if (needed := NEEDED.get(name)) and importlib.util.find_spec(needed) is None:
            print(f"{name} is left out: {needed} is not installed", flush=True)
            continue
        sides[name] = lambda peer=peer: peer(tars, photos, folder)
    if not only or any(name.startswith("s3") for name in only):
        remote, process = servers.enter_context(s3(folder / "server"))
        stored = ingest(several_times(photos, folder / "photos", options.times), folder / "root-s3", PER_TAR_S3)
        repeated = Repeated(*stored, remote, folder)
        sides |= {"s3_local": repeated.local, "s3_first_epoch": repeated.first, "s3_cached": repeated.cached}
        processes.append(process)
    return {name: side for name, side in sides.items() if not only or name in only}, processes


def measured(sides: Mapping[str, Side], rounds: int) -> dict[str, list[float]]:
    """Rates in images/s, by name, of the rounds after the first."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name in list(sides) if turn % 2 == 0 else list(sides)[::-1]:
            count, seconds = epoch(sides[name])
            if turn:
                rates[name].append(count / seconds)
                print(f"{name}: {rates[name][-1]:,.0f} images/s", flush=True)
    return rates


def epoch(side: Side) -> tuple[int, float]:
    """Images of an epoch, and the seconds that it took."""
    batches = side()
    started = time.perf_counter()
    count = sum(len(batch[0]) for batch in batches)
    return count, time.perf_counter() - started


def profiled(sides: Mapping[str, Side], processes: list[int]) -> None:
    """Print where the time of ours goes, each in an epoch after another one."""
    from tests.bench.loader_profile import profile

    for name in OURS:
        if name in sides:
            epoch(sides[name])
            batches = sides[name]()
            print(f"{name}:")
            profile(lambda batches=batches: sum(len(batch[0]) for batch in batches), processes)


def compared(rates: dict[str, float]) -> dict[str, Any]:
    """Ours over the others, and ours from S3 over ours from the local disk."""
    own = rates.get("patchline", 0.0)
    peers = {name: rate for name, rate in rates.items() if name not in (*OURS, "decode_limit")}
    found: dict[str, Any] = {"images_per_s": {name: round(rate) for name, rate in rates.items()}}
    for name in ("webdataset_pil", "decode_limit"):
        if name in rates:
            found[f"vs_{name}"] = round(own / rates[name], 2)
    if peers:
        found["vs_best_peer"] = round(own / max(peers.values()), 2)
    for name in ("s3_first_epoch", "s3_cached"):
        if name in rates and "s3_local" in rates:
            found[name] = round(rates[name] / rates["s3_local"], 2)
    return found


def make_tars(photos: list[Path], folder: Path) -> list[str]:
    """The peers' tars."""
    import webdataset

    folder.mkdir()
    classes = sorted({path.parent.name for path in photos})
    found = []
    for start in range(0, len(photos), PER_TAR):
        found.append(str(folder / f"{start // PER_TAR:06d}.tar"))
        with webdataset.TarWriter(found[-1]) as writer:
            for path in photos[start : start + PER_TAR]:
                label = classes.index(path.parent.name)
                writer.write({"__key__": path.stem, "jpg": path.read_bytes(), "cls": label})
    return found


if __name__ == "__main__":
    main()
