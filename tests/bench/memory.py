"""The memory model against measured peaks on the CPU: `make bench-memory`, or `python -m tests.bench.memory`.

Each case is two updates through the engine on random images, in processes of its own. Their peak resident memory is
taken twice: beyond that after the imports of this file, and beyond that after an update of a tiny network, when
DeepSpeed has imported what it imports with its first engine. Every error is printed; one of the first kind above
15 % makes the script end with 1. `--predict` prints the predictions alone. The last line is JSON.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import deque
from dataclasses import asdict, dataclass

from stages.models.config import ModelConfig
from stages.training.config import TrainingConfig
from stages.training.memory import LIBRARIES, Network, memory

LIMIT, UPDATES, RESOLUTION, CLASSES = 0.15, 2, 224, 1000
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""glibc keeps freed memory for later; what the network holds is seen when large pieces go back at once."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One training run; `batch` is the images of each worker's update."""

    variant: str
    batch: int
    zero_stage: int = 2
    activation_checkpointing: bool = False
    workers: int = 1
    precision: str = "fp32"
    micro_batch: int | None = None
    polyak_decay: float = 0.0

    @property
    def name(self) -> str:
        """In a table."""
        parts = [f"{self.variant}/16, batch {self.batch}, ZeRO {self.zero_stage}", self.precision]
        parts += ["checkpointing"] if self.activation_checkpointing else []
        parts += [f"{self.workers} workers"] if self.workers > 1 else []
        parts += [f"micro-batch {self.micro_batch}"] if self.micro_batch else []
        parts += ["average"] if self.polyak_decay else []
        return ", ".join(parts)


CASES = [
    *(
        Case(variant=variant, batch=batch, zero_stage=stage, activation_checkpointing=again)
        for variant in ("S", "B")
        for batch in (16, 32)
        for stage in (0, 2)
        for again in (False, True)
    ),
    *(
        Case(variant=variant, batch=16, activation_checkpointing=again, workers=2)
        for variant in ("S", "B")
        for again in (False, True)
    ),
    Case(variant="S", batch=16, zero_stage=1),
    Case(variant="S", batch=16, zero_stage=3),
    Case(variant="S", batch=32, micro_batch=8, polyak_decay=0.9999),
    Case(variant="S", batch=8, precision="bf16"),
    Case(variant="S", batch=8, precision="bf16", zero_stage=1, activation_checkpointing=True),
    Case(variant="B", batch=4, precision="bf16", activation_checkpointing=True),
]


def settings(case: Case) -> tuple[TrainingConfig, Network]:
    """The run's config and network."""
    config = TrainingConfig(
        updates=UPDATES,
        global_batch=case.batch * case.workers,
        workers=case.workers,
        micro_batch=case.micro_batch,
        zero_stage=case.zero_stage,
        precision=case.precision,
        activation_checkpointing=case.activation_checkpointing,
        polyak_decay=case.polyak_decay,
    )
    if case.variant == "tiny":
        tiny = ModelConfig(width=64, depth=1, num_heads=1, mlp_dim=128, patch_size=16)
        return config, Network(model=tiny, resolution=32, num_classes=10)
    model = ModelConfig.model_validate({"variant": case.variant, "patch_size": 16})
    return config, Network(model=model, resolution=RESOLUTION, num_classes=CLASSES)


def train(case: Case) -> None:
    """Run the case in this process, as a rank of a gang where the environment says so; prints bytes."""
    import torch

    import stages.models.vit  # noqa: F401
    from stages.training.engine import import_deepspeed

    import_deepspeed(torch.device("cpu"))
    torch.set_num_threads(1)
    imported = _of_this_process("VmRSS")
    _updates(*settings(Case(variant="tiny", batch=2, workers=case.workers)))
    begun = _of_this_process("VmRSS")
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")
    _updates(*settings(case))
    print(json.dumps([_of_this_process("VmHWM") - before for before in (imported, begun)]))


def _updates(config: TrainingConfig, network: Network) -> None:
    """Train on random images, with as many batches at hand as the loader holds."""
    import numpy as np
    import torch

    from stages.data.batches import Batch
    from stages.models.initialize import initialize
    from stages.models.vit import VisionTransformer
    from stages.training.engine import Engine

    def batch() -> Batch:
        rows, side = config.global_batch // config.most_workers, network.resolution
        images = torch.randint(0, 256, (rows, side, side, 3), dtype=torch.uint8)
        labels = torch.randint(0, network.num_classes, (rows,))
        return Batch(images=images, labels=labels, samples=np.arange(rows))

    model = VisionTransformer(network.model, network.resolution, network.num_classes)
    initialize(model, 0)
    engine = Engine(model, config, config.most_workers, 0)
    ahead = deque(batch() for _ in range(config.input.read_ahead))
    for update in range(UPDATES):
        ahead.append(batch())
        engine.step(ahead.popleft(), 1e-3, seed=(0, update, 0), own=(0.0, 0.0, 0.0)).report()


def _of_this_process(name: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(f"{name}:"))


def measure(case: Case) -> list[int]:
    """The most that a worker of this case needs, in bytes beyond each baseline, measured in fresh processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        gang = {"WORLD_SIZE": str(case.workers), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    command = [sys.executable, "-m", "tests.bench.memory", json.dumps(asdict(case))]
    workers = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, **MALLOC, **gang, "RANK": str(rank)}
        )
        for rank in range(case.workers)
    ]
    outputs = [worker.communicate()[0] for worker in workers]
    if any(worker.returncode for worker in workers):
        raise SystemExit(f"{case.name} failed")
    return max(json.loads(output.splitlines()[-1]) for output in outputs)


def predict(case: Case) -> tuple[int, str]:
    """Bytes of a worker by the model, and the moment of its peak."""
    config, network = settings(case)
    found = memory(config, network, case.workers, "cpu")
    return found.total, found.moment


def main() -> None:
    """Predict, measure, print, and exit with 1 where an error is above the limit."""
    if len(sys.argv) > 1 and sys.argv[1] != "--predict":
        return train(Case(**json.loads(sys.argv[1])))
    errors: dict[str, float] = {}
    for case in CASES:
        predicted, moment = predict(case)
        line = f"{case.name:<58} {predicted / 1e6:8,.0f} MB"
        if len(sys.argv) == 1:
            imported, begun = (found / 1e6 for found in measure(case))
            errors[case.name] = predicted / imported / 1e6 - 1
            line += f"  measured {imported:6,.0f} MB {errors[case.name]:+7.1%}"
            apart = (predicted - LIBRARIES) / begun / 1e6 - 1
            line += f"  from the first engine on {begun:6,.0f} MB {apart:+7.1%} without the libraries"
        print(f"{line}  at the {moment}", flush=True)
    worst = max((abs(error) for error in errors.values()), default=0.0)
    print(json.dumps({"worst": round(worst, 3), "errors": {name: round(error, 3) for name, error in errors.items()}}))
    sys.exit(0 if worst <= LIMIT else 1)


if __name__ == "__main__":
    main()
