"""What training costs beside bare PyTorch, on the CPU: `make bench-train`, or `python -m tests.bench.train [PART …]`.

- `loop`: images/s of the whole pretraining (loader from local tars, DeepSpeed, logging every 10 updates, a checkpoint
  every 50) beside a bare PyTorch loop of the same network on data in memory; ViT-S/16 at 224 in bf16, one process,
  all cores. `vs_bare_loop`.
- `ddp`: two ranks with ZeRO 2 beside PyTorch's DistributedDataParallel, 32 images a rank in memory, one thread each.
  `vs_ddp`.
- `saving`: how long training stands for a checkpoint, as a part of what saving it synchronously takes
  (`checkpoint_stall_ratio`), and synchronous saving beside DeepSpeed's own format, for ViT-S, B and L.

Peers take turns with ours in the same run; each turn is a process of its own. The last line is JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROUNDS = 3
UPDATES, WARM = 60, 5
"""Of a turn of `loop`; the first ones are not counted."""
BATCH = 16
LIMITS = {"vs_bare_loop": 0.95, "vs_ddp": 0.95, "checkpoint_stall_ratio": 0.10}


def main() -> None:
    """Measure, print, and exit with 1 where a limit is missed."""
    parts = sys.argv[1:] or ["loop", "ddp", "saving"]
    scratch = Path(tempfile.mkdtemp(prefix="patchline-bench-"))
    result: dict[str, Any] = {"cores": os.cpu_count()}
    try:
        for part in parts:
            result |= {"loop": measure_loop, "ddp": measure_ddp, "saving": measure_saving}[part](scratch)
            print(json.dumps(result), flush=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    missed = [
        name
        for name, limit in LIMITS.items()
        if name in result and (result[name] > limit if name == "checkpoint_stall_ratio" else result[name] < limit)
    ]
    print(json.dumps({**result, "missed": missed}))
    sys.exit(1 if missed else 0)


def measure_loop(scratch: Path) -> dict[str, Any]:
    """Images/s of the stage and of the bare loop, in turns."""
    child("prepare", scratch)
    rates: dict[str, list[float]] = {"bare": [], "stage": []}
    for turn in range(ROUNDS):
        for name in ("bare", "stage"):
            rates[name].append(child(name, scratch, str(turn))["images_per_s"])
            print(f"loop, turn {turn}: {name} {rates[name][-1]:.2f} images/s", flush=True)
    ours, theirs = (statistics.median(rates[name]) for name in ("stage", "bare"))
    return {
        "stage_images_per_s": round(ours, 2),
        "bare_images_per_s": round(theirs, 2),
        "vs_bare_loop": round(ours / theirs, 3),
    }


def measure_ddp(scratch: Path) -> dict[str, Any]:
    """Images/s of two ranks, in turns."""
    rates: dict[str, list[float]] = {"ddp": [], "zero": []}
    for turn in range(ROUNDS):
        for name in ("ddp", "zero"):
            rates[name].append(pair(name, scratch)["images_per_s"])
            print(f"ddp, turn {turn}: {name} {rates[name][-1]:.2f} images/s", flush=True)
    ours, theirs = (statistics.median(rates[name]) for name in ("zero", "ddp"))
    return {
        "zero2_images_per_s": round(ours, 2),
        "ddp_images_per_s": round(theirs, 2),
        "vs_ddp": round(ours / theirs, 3),
    }


def measure_saving(scratch: Path) -> dict[str, Any]:
    """Seconds of saving, by network."""
    found = {variant: child("saving", scratch, variant) for variant in ("S", "B", "L")}
    for variant, figures in found.items():
        print(f"saving, ViT-{variant}/16: {figures}", flush=True)
    ratios = [figures["stall_seconds"] / figures["synchronous_seconds"] for figures in found.values()]
    return {"saving": found, "checkpoint_stall_ratio": round(max(ratios), 3)}


# In processes of their own


def child(name: str, scratch: Path, *words: str, **variables: str) -> dict[str, Any]:
    """Run one of CHILDREN; returns what it prints on its last line."""
    command = [sys.executable, "-m", "tests.bench.train_turns", name, str(scratch), *words]
    done = subprocess.run(command, env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def pair(name: str, scratch: Path) -> dict[str, Any]:
    """Run one of CHILDREN as two ranks; returns what rank 0 prints."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tests.bench.train_turns", name, str(scratch)]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(command, env={**shared, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    outputs = [rank.communicate()[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    return json.loads(outputs[0].splitlines()[-1])


def rate(times: list[float], images: int) -> float:
    """Images/s of the updates after the warm-up, given the moments at which updates ended."""
    return images * (len(times) - 1 - WARM) / (times[-1] - times[WARM])


if __name__ == "__main__":
    began = time.monotonic()
    try:
        main()
    finally:
        print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
