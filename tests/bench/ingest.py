"""Images/s of ingestion beside a plain loop over `webdataset.TarWriter`: `make bench-ingest`, or
`python -m tests.bench.ingest [IMAGES]`.

A folder of JPEGs of about 40 kB (cut from the photographs that scikit-learn ships; 500 different ones, repeated)
goes into the S3 server of a local stack of its own, once through the plain loop, which is one process that
writes a tar and uploads it with boto3, and once through the ingest stage as a Ray job, checked with
`verify: markers`. Both are timed in the same run, alternately, and the medians are compared. The last line is
JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

IMAGES, DIFFERENT, ROUNDS = 20_000, 500, 3
SHARD_BYTES = 256 * 2**20


def main() -> None:
    """Measure, print, and exit with 1 where the target is missed."""
    images = int(sys.argv[1]) if len(sys.argv) > 1 else IMAGES
    home = Path(tempfile.mkdtemp(prefix="patchline-bench-"))
    os.environ["PATCHLINE_HOME"] = str(home)
    try:
        folder = make_photos(home / "photos", images)
        stored = sum(path.stat().st_size for path in folder.rglob("*.jpg"))
        patchline("up")
        rates: dict[str, list[float]] = {"tarwriter": [], "patchline": []}
        peaks: list[float] = []
        for turn in range(ROUNDS):
            rates["tarwriter"].append(images / plain_loop(folder, turn))
            seconds, peak = ingest(folder, turn)
            rates["patchline"].append(images / seconds)
            peaks.append(peak)
            print({name: round(values[-1]) for name, values in rates.items()}, f"worker peak {peak:.0f} MB", flush=True)
    finally:
        patchline("down")
        shutil.rmtree(home, ignore_errors=True)
    ours, theirs = (statistics.median(rates[name]) for name in ("patchline", "tarwriter"))
    result = {
        "images": images, "mean_bytes": round(stored / images), "cores": os.cpu_count(),
        "tarwriter_images_per_s": round(theirs), "patchline_images_per_s": round(ours),
        "worker_megabytes": round(max(peaks)), "vs_tarwriter": round(ours / theirs, 2),
    }  # fmt: skip
    print(json.dumps(result))
    sys.exit(0 if result["vs_tarwriter"] >= 1.5 else 1)


def make_photos(folder: Path, images: int) -> Path:
    """A folder of JPEGs, ten classes."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(np.asarray(image)) for image in load_sample_images().images]
    random = np.random.default_rng(0)
    different: list[bytes] = []
    scratch = folder.parent / "scratch.jpg"
    for number in range(min(DIFFERENT, images)):
        photograph = photographs[number % len(photographs)]
        left, top = int(random.integers(0, 140)), int(random.integers(0, 52))
        photograph.crop((left, top, left + 500, top + 375)).save(scratch, quality=int(random.integers(78, 87)))
        different.append(scratch.read_bytes())
    scratch.unlink()
    for number in range(images):
        path = folder / f"class-{number % 10}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(different[number % len(different)])
    return folder


def plain_loop(folder: Path, turn: int) -> float:
    """Seconds of the loop in a process of its own, its imports left out."""
    stack = json.loads((Path(os.environ["PATCHLINE_HOME"]) / "stack.json").read_text())
    done = subprocess.run(
        [sys.executable, "-c", LOOP, str(folder), f"loop-{turn}", str(SHARD_BYTES), str(stack["ports"]["s3"])],
        env={**os.environ, **stack_environment()},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(done.stdout)


LOOP = """
import os, sys, tempfile, time
from pathlib import Path
import boto3
from webdataset.writer import TarWriter

folder, prefix, limit, port = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}")
classes = {name: label for label, name in enumerate(sorted(os.listdir(folder)))}
began = time.monotonic()
files = sorted(folder.glob("*/*.jpg"))
with tempfile.TemporaryDirectory() as scratch:
    shard, number = 0, 0
    while number < len(files):
        path, size = Path(scratch) / f"{shard:06d}.tar", 0
        with TarWriter(str(path)) as tar:
            while number < len(files) and size < limit:
                file = files[number]
                data = file.read_bytes()
                tar.write({"__key__": f"{number:09d}", "jpg": data, "cls": classes[file.parent.name]})
                size, number = size + len(data), number + 1
        client.upload_file(str(path), "patchline-local", f"{prefix}/{path.name}")
        path.unlink()
        shard += 1
print(time.monotonic() - began)
"""


def ingest(folder: Path, turn: int) -> tuple[float, float]:
    """Seconds of the stage from its first moment to its record, and the most megabytes that a worker took."""
    with peak_of_workers() as peak:
        patchline("ingest", str(folder), f"s3://patchline-local/ours-{turn}", "-o", f"seed={turn}",
                  "-o", "ingest.validation_fraction=0", "-o", "ingest.test_fraction=0")  # fmt: skip
    status: dict[str, Any] = json.loads(patchline("status", "--json"))
    return status["stages"]["ingest"]["seconds"], peak[0]


@contextmanager
def peak_of_workers() -> Iterator[list[float]]:
    """The largest resident size of a Ray worker that runs tasks, looked at twice a second."""
    import psutil

    peak, closed = [0.0], threading.Event()

    def watch() -> None:
        while not closed.wait(0.5):
            for process in psutil.process_iter(["name", "memory_info"]):
                if (process.info["name"] or "").startswith("ray::") and process.info["memory_info"]:
                    peak[0] = max(peak[0], process.info["memory_info"].rss / 1e6)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        closed.set()
        thread.join()


def stack_environment() -> dict[str, str]:
    """What the loop's boto3 needs."""
    from pipeline.settings import resolve

    return resolve().environment


def patchline(*words: str) -> str:
    """Run the command; returns what it prints."""
    done = subprocess.run([sys.executable, "-m", "pipeline.cli", *words], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


if __name__ == "__main__":
    main()
