"""What training costs beside bare PyTorch, on the CPU: `make bench-train`, or `python -m tests.bench.train [PART …]`.

- `loop`: images/s of the whole pretraining (loader from local tars, DeepSpeed, logging every 10 updates, a checkpoint
  every 50) beside a bare PyTorch loop of the same network on data in memory; ViT-S/16 at 224 in bf16, one process,
  all cores. `vs_bare_loop`.
- `ddp`: two ranks with ZeRO 2 beside PyTorch's DistributedDataParallel, 32 images a rank in memory, one thread each.
  `vs_ddp`.
- `saving`: how long training stands for a checkpoint, as a part of what saving it synchronously takes
  (`checkpoint_stall_ratio`), and beside DeepSpeed's own synchronous saving, for ViT-S, B and L.

- `timm`: the bare loop beside the same loop over timm's network, where timm is installed (`bare_vs_timm`).

Peers take turns with ours in the same run; each turn is a process of its own. Both also run once more with glibc told
to keep freed memory, as our workers tell it (`…_same_malloc`): what is left then is the loops' own. The last line is
JSON.
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
LIMITS = {
    **{f"{ratio}{peer}": 0.95 for ratio in ("vs_bare_loop", "vs_ddp") for peer in ("", "_same_malloc")},
    "checkpoint_stall_ratio": 0.10,
    "bare_vs_timm": 1.0,
}


def main() -> None:
    """Measure, print, and exit with 1 where a limit is missed."""
    parts = sys.argv[1:] or ["loop", "ddp", "saving"]
    scratch = Path(tempfile.mkdtemp(prefix="patchline-bench-"))
    result: dict[str, Any] = {"cores": os.cpu_count()}
    try:
        for part in parts:
            result |= PARTS[part](scratch)
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
    rates: dict[str, list[float]] = {}
    for turn in range(ROUNDS):
        for name in ("bare", "stage", "bare_same_malloc"):
            rates.setdefault(name, []).append(child(name, scratch, str(turn))["images_per_s"])
            print(f"loop, turn {turn}: {name} {rates[name][-1]:.2f} images/s", flush=True)
    return compared(rates, "stage", "bare", "vs_bare_loop")


def measure_ddp(scratch: Path) -> dict[str, Any]:
    """Images/s of two ranks, in turns."""
    rates: dict[str, list[float]] = {}
    for turn in range(ROUNDS):
        for name in ("ddp", "zero2", "ddp_same_malloc"):
            rates.setdefault(name, []).append(pair(name, scratch)["images_per_s"])
            print(f"ddp, turn {turn}: {name} {rates[name][-1]:.2f} images/s", flush=True)
    return compared(rates, "zero2", "ddp", "vs_ddp")


def measure_timm(scratch: Path) -> dict[str, Any]:
    """Images/s of the bare loop over our network and over timm's, in turns."""
    rates: dict[str, list[float]] = {}
    for turn in range(ROUNDS):
        for name in ("bare_same_malloc", "timm"):
            rates.setdefault(name, []).append(child(name, scratch, str(turn))["images_per_s"])
            print(f"timm, turn {turn}: {name} {rates[name][-1]:.2f} images/s", flush=True)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratio = medians["bare_same_malloc"] / medians["timm"]
    return {"timm_images_per_s": round(medians["timm"], 2), "bare_vs_timm": round(ratio, 3)}


def compared(rates: dict[str, list[float]], ours: str, peer: str, ratio: str) -> dict[str, Any]:
    """Medians, and ours as a part of the peer's."""
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratios = {
        ratio: medians[ours] / medians[peer],
        f"{ratio}_same_malloc": medians[ours] / medians[f"{peer}_same_malloc"],
    }
    return {f"{name}_images_per_s": round(value, 2) for name, value in medians.items()} | {
        name: round(value, 3) for name, value in ratios.items()
    }


def measure_saving(scratch: Path) -> dict[str, Any]:
    """Seconds of saving, by network."""
    found = {variant: child("saving", scratch, variant) for variant in ("S", "B", "L")}
    for variant, figures in found.items():
        print(f"saving, ViT-{variant}/16: {figures}", flush=True)
    own, deepspeed = (
        max(figures["stall_seconds"] / figures[f"{way}_seconds"] for figures in found.values())
        for way in ("synchronous", "deepspeed")
    )
    return {"saving": found, "checkpoint_stall_ratio": round(own, 3), "stall_vs_deepspeed": round(deepspeed, 3)}


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


PARTS = {"loop": measure_loop, "ddp": measure_ddp, "saving": measure_saving, "timm": measure_timm}

if __name__ == "__main__":
    began = time.monotonic()
    try:
        main()
    finally:
        print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
