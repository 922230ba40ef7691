"""Images/s that loaders bring as batches for training: `make bench-loader PHOTOS=DIR`, or
`python -m tests.bench.loader DIR [--rounds N] [--times N] [--only NAME,NAME] [--profile]`.

The JPEGs of a folder, with a folder for each class, in tars on the local disk; random crops at 224 pixels, batches of
64, on all cores. Ours is the loader of the training loop, with as many threads as there are cores, over the tars that
`patchline ingest` has written. *webdataset_pil* and *webdataset_turbo* (simplejpeg, OpenCV) are the usual pipelines,
*decode_limit* a DataLoader over images in memory that reads nothing; *ray_data*, *litdata* and *mosaicml_streaming*
read with Pillow. These read the photos four times in a turn. What is not installed is left out, and a line says so; for
all of them:

    pip install opencv-python-headless litdata
    pip install --no-deps mosaicml-streaming && pip install brotli python-snappy xxhash zstd catalogue

The *s3* ones are ours over `--times` times the photos: *s3_local* from tars on the local disk, *s3_first_epoch* from a
SeaweedFS on this machine with an empty cache, *s3_cached* from the cache that this has filled. All take turns, each
once before it counts; medians. `--profile` says where the processor's time of ours goes, by `perf`, and compares
nothing. The last line is JSON; exits with 1 where a limit of docs/benchmarks.md is missed, or has no figure since a
side that was asked for is not installed; with 2 where there are no photos, or no side of a name.
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
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

LIMITS = {
    "vs_webdataset_pil": 3.5, "vs_best_peer": 1.25, "vs_decode_limit": 1.25, "s3_first_epoch": 0.8, "s3_cached": 0.95,
}  # fmt: skip
NEEDED = {
    "webdataset_pil": "webdataset", "webdataset_turbo": "cv2", "decode_limit": "cv2", "ray_data": "ray",
    "litdata": "litdata", "mosaicml_streaming": "streaming",
}  # fmt: skip
"""The sides beside ours, and the module that each needs."""
OURS = ("patchline", "s3_local", "s3_first_epoch", "s3_cached")
PEERS = tuple(name for name in NEEDED if name != "decode_limit")
SIDES = {"vs_webdataset_pil": ("webdataset_pil",), "vs_best_peer": PEERS, "vs_decode_limit": ("decode_limit",)}
"""What a figure needs beside ours."""
PASSES = 4
"""Times that the local sides read the photos in a turn: most peers start their workers in it, for a tenth of a second,
which is a fifth of what the fastest of them takes for 1,024 photos."""
PER_TAR, PER_TAR_S3 = 128, 512
LEAST = 64
"""Photos that make a batch."""
Side = Callable[[], Iterable[Any]]
"""Makes an epoch of batches; what it does before it returns is not timed."""


def main() -> None:
    """Measure, print, and exit with 1 where a limit is missed or has no figure."""
    options = parsed()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    absent = not_installed(options.only)
    for name, module in absent.items():
        print(f"{name} is left out: {module} is not installed", flush=True)
    print(f"cores: {os.cpu_count()}, load before: {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory(prefix="patchline-bench-") as folder, ExitStack() as servers:
        sides, processes = all_sides(options, Path(folder), absent, servers)
        if options.profile:
            return profiled(sides, processes)
        rates = measured(sides, options.rounds)
    found = compared({name: statistics.median(own) for name, own in rates.items()})
    print(json.dumps(found | {name: round(found[name], 2) for name in LIMITS if name in found}))
    wrong = [*missed(found), *without_figure(absent)]
    sys.exit("; ".join(wrong) if wrong else 0)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; exits with 2 and one line where they cannot be followed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("photos", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--times", type=int, default=16)
    parser.add_argument("--only", default="")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args(arguments)
    options.only = list(filter(None, options.only.split(",")))
    names = (*OURS, *NEEDED)
    if unknown := [name for name in options.only if name not in names]:
        parser.error(f"--only {','.join(unknown)}: no such side; there are {', '.join(names)}")
    if (count := len(list(options.photos.glob("*/*.jpg")))) < LEAST:
        what = f"{count} photos" if options.photos.is_dir() else "no such folder"
        parser.error(f"{options.photos}: {what}: give one with a folder of .jpg files for each class, {LEAST} in all")
    return options


def not_installed(only: Sequence[str]) -> dict[str, str]:
    """Sides that are asked for and cannot be had here, and the module that each lacks."""
    wanted = {name: module for name, module in NEEDED.items() if not only or name in only}
    return {name: module for name, module in wanted.items() if importlib.util.find_spec(module) is None}


def all_sides(
    options: argparse.Namespace, folder: Path, absent: Mapping[str, str], servers: ExitStack
) -> tuple[dict[str, Side], list[int]]:
    """The sides by name, in the order of their turns, and the ids of the processes that ours run in."""
    import torch

    from tests.bench.loader_ours import Epochs, Repeated, ingest, s3, several_times
    from tests.bench.loader_peers import LOADERS

    torch.set_num_threads(1)
    photos, processes, only = sorted(options.photos.glob("*/*.jpg")), [os.getpid()], options.only
    ours = Epochs(*ingest(options.photos, folder / "root", PER_TAR), passes=PASSES)
    sides: dict[str, Side] = {"patchline": lambda: ours.next(folder / "cache")}
    tars = make_tars(photos, folder / "tars")
    for name, peer in LOADERS.items():
        if name not in absent:
            sides[name] = lambda peer=peer: peer(tars * PASSES, photos * PASSES, folder)
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
    """Ours over the others, over the best of them where all were measured; and from S3 over from the local disk."""
    found: dict[str, Any] = {"images_per_s": {name: round(rate) for name, rate in rates.items()}}
    for figure, sides in SIDES.items():
        if {"patchline", *sides} <= rates.keys():
            found[figure] = rates["patchline"] / max(rates[name] for name in sides)
    for name in ("s3_first_epoch", "s3_cached"):
        if {name, "s3_local"} <= rates.keys():
            found[name] = rates[name] / rates["s3_local"]
    return found


def missed(found: Mapping[str, Any]) -> list[str]:
    """Limits that figures miss, before they are rounded."""
    below = {name: limit for name, limit in LIMITS.items() if name in found and found[name] < limit}
    return [f"missed: {name} {found[name]:.4f}, at least {limit}" for name, limit in below.items()]


def without_figure(absent: Mapping[str, str]) -> list[str]:
    """What is not known of sides that were asked for and are not installed."""
    if not absent:
        return []
    names = [name for name, sides in SIDES.items() if absent.keys() & set(sides)]
    lacks = ", ".join(f"{name} needs {module}" for name, module in absent.items())
    return [f"no figure for {', '.join(names)}: {lacks}"]


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
