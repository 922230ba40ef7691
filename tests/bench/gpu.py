"""What training reaches on this machine's GPU: `make bench-gpu`, or `python -m tests.bench.gpu [B L H]`.

For ViT-B/16, L/16 and H/14 at 224 in bf16: images/s and MFU of our engine, against the rate of a matrix product that
is measured in the same run, and timm's training step at the same batch in turns with it (`vs_timm`); the batch is the
largest that fits, by doubling, or the fastest below it (`ended_by` says whether memory was the limit). For ViT-L/16
also ZeRO 1, 2, 3 and offloading; for ViT-B/16 the whole pretraining with the loader (`data_wait`, the part of the time
that waits for images).

Needs torch, deepspeed, webdataset, numpy, scipy, Pillow, pydantic, safetensors and timm, and no Ray. Each measurement
is a process of its own; one that fails is told, and the others go on. After each, all figures so far are printed as
JSON. `--cpu` tries the script out with a tiny network and without a GPU: its figures mean nothing. The last line is
JSON; the exit code is 1 where ViT-L/16 does not reach half of the matrix rate, or timm's step is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PATCH = {"Ti": 16, "B": 16, "L": 16, "H": 14}
LARGEST = 1024
ROUNDS = 3
LEAST_MFU = 0.5
OUT_OF_MEMORY = ("CUDA out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "ran out of memory")
"""What is said where a GPU's memory is out: by torch, by CUDA, by its libraries, and by us."""
BATCH_OF_WAYS, BATCH_OF_LOADER = 64, 256
WAYS = {
    "ZeRO 1": {"zero_stage": 1},
    "ZeRO 2": {"zero_stage": 2},
    "ZeRO 3": {"zero_stage": 3},
    "ZeRO 2, optimizer offloaded": {"zero_stage": 2, "offload": "optimizer"},
    "ZeRO 3, parameters offloaded": {"zero_stage": 3, "offload": "parameters"},
    "ZeRO 1, checkpointing": {"zero_stage": 1, "activation_checkpointing": True},
    "ZeRO 1, compiled": {"zero_stage": 1, "compile": True},
}


def main() -> None:
    """Measure, print, and exit with 1 where a limit is missed or something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", default=None, help="B, L, H; all of them if none is named")
    parser.add_argument("--parts", default="models,ways,loader", help="which of these, with commas between them")
    parser.add_argument("--cpu", action="store_true", help="only try the script out")
    arguments = parser.parse_args()
    if arguments.cpu:
        os.environ["PATCHLINE_BENCH_CPU"] = "1"
    variants, parts = arguments.variants or (["Ti"] if arguments.cpu else ["B", "L", "H"]), arguments.parts.split(",")
    result: dict[str, Any] = child("machine")
    if "error" in result:
        sys.exit(result["error"])
    result |= {"models": {}, "ways": {}, "loader": {}}
    for variant in variants if "models" in parts else []:
        result["models"][f"{variant}/{PATCH[variant]}"] = measure(variant, result)
        print(json.dumps(result), flush=True)
    large = "L" if "L" in variants else variants[0]
    for name, fields in WAYS.items() if "ways" in parts else []:
        result["ways"][name] = child("step", large, 2 if arguments.cpu else BATCH_OF_WAYS, fields)
        print(json.dumps(result), flush=True)
    if "loader" in parts:
        result["loader"] = child("loader", variants[0], 2 if arguments.cpu else BATCH_OF_LOADER)
    missed = [] if arguments.cpu else missed_by(result)
    print(json.dumps({**result, "missed": missed}))
    sys.exit(1 if missed else 0)


def missed_by(result: dict[str, Any]) -> list[str]:
    """What does not reach its limit, and what failed."""
    models = result["models"]
    missed = [f"vs_timm, {name}" for name, found in models.items() if found.get("vs_timm", 0.0) < 1.0]
    missed += ["mfu, L/16"] * ("L/16" in models and models["L/16"].get("mfu", 0.0) < LEAST_MFU)
    found = {**models, **result["ways"], "loader": result["loader"]}
    return missed + [f"{name}: {figures['error']}" for name, figures in found.items() if "error" in figures]


def measure(variant: str, machine: dict[str, Any]) -> dict[str, Any]:
    """One model: the batches that fit, and both training steps at the fastest one that both have room for, in turns."""
    found = sizes(variant)
    rates = found["images_per_s_by_batch"]
    if not rates:
        return {"error": "no batch fits", **found}
    found["largest_batch"] = max(rates)
    for batch in sorted(rates, key=lambda size: -rates[size]):
        turns = [
            (child("step", variant, batch, WAYS["ZeRO 1"]), child("timm", variant, batch) if machine["timm"] else {})
            for _ in range(ROUNDS)
        ]
        failed = [turn for pair in turns for turn in pair if "error" in turn]
        if not failed:
            return found | compared(batch, turns, machine)
        if others := [turn["error"] for turn in failed if not turn["out_of_memory"]]:
            return found | {"error": f"batch {batch}: {others[0]}"}
    return found | {"error": "one of the steps lacks memory at every batch"}


def sizes(variant: str) -> dict[str, Any]:
    """Images/s by batch: doubled until memory is out, then halfway between the last two.

    `ended_by` says what ended it: memory, or the largest batch that is tried; anything else is an `error`.
    """
    rates: dict[int, float] = {}
    smallest, largest = (2, 4) if os.environ.get("PATCHLINE_BENCH_CPU") else (32, LARGEST)
    batch, ended = smallest, {"ended_by": f"the largest batch that is tried, {largest}"}
    while batch <= largest and not (failed := tried(variant, batch, rates)):
        batch *= 2
    if batch <= largest:
        ended = failed
        if "error" not in failed and batch > smallest:
            ended |= tried(variant, 3 * batch // 4, rates)
    return {"images_per_s_by_batch": rates, **ended}


def tried(variant: str, batch: int, rates: dict[int, float]) -> dict[str, str]:
    """Add a batch's images/s to the rates; returns what kept it from that, if anything did."""
    found = child("step", variant, batch, WAYS["ZeRO 1"])
    if "error" not in found:
        rates[batch] = found["images_per_s"]
        return {}
    return {"ended_by": "memory"} if found["out_of_memory"] else {"error": f"batch {batch}: {found['error']}"}


def compared(batch: int, turns: list[tuple[dict[str, Any], dict[str, Any]]], machine: dict[str, Any]) -> dict[str, Any]:
    """Medians, and ours beside timm's."""
    rate = statistics.median(ours["images_per_s"] for ours, _ in turns)
    ours, peer = turns[0]
    found = {
        "batch": batch,
        "images_per_s": rate,
        "mfu": round(rate * ours["flops_per_image"] / 1e12 / machine["matrix_tflops"], 3),
        "memory_gb": ours["memory_gb"],
    }
    if peer:
        theirs = statistics.median(other["images_per_s"] for _, other in turns)
        found |= {"timm_images_per_s": theirs, "vs_timm": round(rate / theirs, 3), "timm_memory_gb": peer["memory_gb"]}
    return found


def child(name: str, *words: Any) -> dict[str, Any]:
    """What one of `gpu_turns` prints on its last line; `error` where it fails, with the end of what it said.

    Then `out_of_memory` says whether it was the device's memory that it lacked.
    """
    with tempfile.TemporaryDirectory(prefix="patchline-bench-") as scratch:
        command = [sys.executable, "-m", "tests.bench.gpu_turns", name, json.dumps(words)]
        environment = {**os.environ, "SCRATCH": scratch}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        error = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        return {"error": error, "out_of_memory": any(said in done.stderr for said in OUT_OF_MEMORY)}
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    os.chdir(Path(__file__).parents[2])
    main()
