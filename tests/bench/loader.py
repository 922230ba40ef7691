"""Images/s that loaders bring as batches for training: `make bench-loader PHOTOS=DIR`, or
`python -m tests.bench.loader DIR [--rounds N] [--only NAME,NAME]`.

The JPEGs of a folder, with a folder for each class, in tars on the local disk; random crops at 224 pixels, batches of
64, on all cores. Ours is the loader of the training loop, with as many threads as there are cores, over the tars that
`patchline ingest` has written. *webdataset_pil* and *webdataset_turbo* (simplejpeg, OpenCV) are the usual pipelines,
*decode_limit* a DataLoader over images in memory that reads nothing, *ray_data* and *litdata* where they are installed.
OpenCV is needed for two of them: `pip install opencv-python-headless`. All take turns, each once before it counts;
medians. The last line is JSON; exits with 1 where a limit of docs/benchmarks.md is missed.
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
from pathlib import Path
from typing import Any

LIMITS = {"vs_webdataset_pil": 3.5, "vs_best_peer": 1.25, "vs_decode_limit": 1.25}
NEEDED = {"webdataset_turbo": "cv2", "decode_limit": "cv2", "ray_data": "ray", "litdata": "litdata"}
PER_TAR = 128


def main() -> None:
    """Measure, print, and exit with 1 where a limit is missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("photos", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    print(f"cores: {os.cpu_count()}, load before: {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory(prefix="patchline-bench-") as folder:
        rates = measured(Path(folder), options)
    found = compared({name: statistics.median(own) for name, own in rates.items()})
    print(json.dumps(found))
    missed = [
        f"{name} {found[name]}, at least {limit}" for name, limit in LIMITS.items() if found.get(name, limit) < limit
    ]
    sys.exit(f"missed: {'; '.join(missed)}" if missed else 0)


def measured(folder: Path, options: argparse.Namespace) -> dict[str, list[float]]:
    """Rates in images/s, by name, of the rounds after the first."""
    import torch

    from tests.bench.loader_peers import PEERS

    torch.set_num_threads(1)
    photos = sorted(options.photos.glob("*/*.jpg"))
    tars, ours = make_tars(photos, folder / "tars"), Ours(options.photos, folder)
    sides = {"patchline": lambda: ours.batches(len(photos))}
    for name, peer in PEERS.items():
        if (needed := NEEDED.get(name)) and importlib.util.find_spec(needed) is None:
            print(f"{name} is left out: {needed} is not installed", flush=True)
            continue
        sides[name] = lambda peer=peer: peer(tars, photos, folder)
    wanted = options.only.split(",") if options.only else list(sides)
    rates: dict[str, list[float]] = {name: [] for name in sides if name in wanted}
    for turn in range(options.rounds + 1):
        for name in list(rates) if turn % 2 == 0 else list(rates)[::-1]:
            started, count = time.perf_counter(), 0
            for batch in sides[name]():
                count += len(batch[0])
            if turn:
                rates[name].append(count / (time.perf_counter() - started))
                print(f"{name}: {rates[name][-1]:,.0f} images/s", flush=True)
    return rates


def compared(rates: dict[str, float]) -> dict[str, Any]:
    """Ours over the others."""
    own = rates.get("patchline", 0.0)
    peers = {name: rate for name, rate in rates.items() if name not in ("patchline", "decode_limit")}
    found: dict[str, Any] = {"images_per_s": {name: round(rate) for name, rate in rates.items()}}
    for name in ("webdataset_pil", "decode_limit"):
        if name in rates:
            found[f"vs_{name}"] = round(own / rates[name], 2)
    if peers:
        found["vs_best_peer"] = round(own / max(peers.values()), 2)
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


class Ours:
    """The training loop's loader over an ingested folder."""

    def __init__(self, photos: Path, folder: Path) -> None:
        from cluster.storage import open_storage
        from pipeline.config import parse_workflow
        from pipeline.driver import create
        from pipeline.runner import Runner
        from tests.unit.pipeline.test_runner import Silent

        text = f"""
name: loader
stages:
  ingest:
    source: {{kind: folder, path: {photos.absolute()}}}
    samples_per_shard: {PER_TAR}
    validation_fraction: 0
    test_fraction: 0
"""
        self._storage = open_storage(f"file://{folder / 'root'}")
        flow = parse_workflow(text, "loader.yaml")
        runner = Runner(self._storage, create(self._storage, flow), flow, owner="bench", ray=False, tracker=Silent())
        assert runner.run() == "done", runner.failed
        self._dataset, self._cache = runner.finished["ingest"].output, str(folder / "cache")
        self._epoch = 0

    def batches(self, images: int) -> Any:
        """One epoch, the next one at each call."""
        from stages.data.config import DataConfig
        from stages.data.loader import TrainLoader
        from tests.bench.loader_peers import BATCH, SIZE

        config = DataConfig(
            crop_sampling="torchvision", loader_threads=os.cpu_count() or 1, cache=self._cache, window=1024, streams=4
        )
        start, self._epoch = self._epoch * (images // BATCH) * BATCH, self._epoch + 1
        with TrainLoader(
            self._storage, self._dataset, ("train",), config, resolution=SIZE, seed=0, global_batch=BATCH, rank=0,
            world_size=1, start=start, classes=range(len(self._dataset.meta["classes"])),
        ) as loader:  # fmt: skip
            for _ in range(images // BATCH):
                batch = next(loader)
                yield batch.images, batch.labels


if __name__ == "__main__":
    main()
