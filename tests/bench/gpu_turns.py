"""The turns of `tests.bench.gpu`: each is a process that prints its figures as JSON."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from stages.models.config import ModelConfig
from stages.models.flops import forward_macs
from stages.models.initialize import initialize
from stages.models.vit import VisionTransformer
from stages.training.config import TrainingConfig
from stages.training.devices import device_name, matrix_rate, peak_memory
from stages.training.engine import Engine
from tests.bench.gpu import PATCH

ON_CPU = bool(os.environ.get("PATCHLINE_BENCH_CPU"))
DEVICE = torch.device("cpu") if ON_CPU else torch.device("cuda", 0)
RESOLUTION, CLASSES = 224, 1000
WARM, COUNTED = (1, 1) if ON_CPU else (5, 20)


def machine() -> dict[str, Any]:
    """Its GPU, and the rate of a matrix product there."""
    if not ON_CPU and not torch.cuda.is_available():
        sys.exit("this machine has no GPU that torch finds: --cpu tries the script out without one")
    peer = importlib.util.find_spec("timm") is not None
    if not peer and not ON_CPU:
        sys.exit("timm, the peer, is not installed")
    return {
        "device": device_name(DEVICE),
        "torch": torch.__version__,
        "timm": peer,
        "matrix_tflops": round(matrix_rate(DEVICE, torch.bfloat16), 1),
    }


def step(variant: str, batch: int, fields: dict[str, Any]) -> dict[str, Any]:
    """Our engine on images in memory."""
    engine = Engine(network(variant), config(batch, **fields), 1, 0)
    images = examples(batch)

    def update(number: int) -> None:
        engine.step(images, 1e-4, seed=(0, number, 0))

    found = rate(update, batch)
    flops = 6.0 * forward_macs(model_config(variant), RESOLUTION, CLASSES)
    return {"images_per_s": found, "flops_per_image": flops, "memory_gb": round(peak_memory(DEVICE) / 1e9, 2)}


def timm(variant: str, batch: int) -> dict[str, Any]:
    """timm's network in a plain loop: bf16 autocast, fused AdamW, clipping, images already on the device as floats."""
    create_model = importlib.import_module("timm").create_model

    names = {"Ti": "tiny", "B": "base", "L": "large", "H": "huge"}
    name = f"vit_{names[variant]}_patch{PATCH[variant]}_224"
    model = create_model(name, num_classes=CLASSES, act_layer="gelu_tanh").to(DEVICE).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    images = torch.randn(batch, 3, RESOLUTION, RESOLUTION, device=DEVICE)
    labels = torch.arange(batch, device=DEVICE) % CLASSES

    def update(number: int) -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    found = rate(update, batch)
    return {"images_per_s": found, "memory_gb": round(peak_memory(DEVICE) / 1e9, 2)}


def loader(variant: str, batch: int) -> dict[str, Any]:
    """The whole pretraining from local tars: images/s, and the part of the time that waits for images."""
    from cluster.storage import open_storage
    from stages.context import Context, read_output
    from stages.ingest.config import FolderSource, IngestConfig
    from stages.ingest.run import run as run_ingest
    from stages.metrics import MetricReader
    from stages.training.job import Job
    from stages.training.loop import train
    from tests.bench.ranks import rank_of

    scratch = Path(os.environ["SCRATCH"])
    storage = open_storage(f"file://{scratch}/root")
    context = Context(
        storage=storage, folder="stages/ingest/x", attempt=1, seed=0, gang=None,  # type: ignore[arg-type]
        tasks=lambda function, items, label: [function(item) for item in items],
    )  # fmt: skip
    source = FolderSource(path=str(pictures(scratch / "pictures", 64 if ON_CPU else 4096)))
    run_ingest(IngestConfig(source=source, validation_fraction=0.0, test_fraction=0.0), {}, context)
    updates = 2 if ON_CPU else 60
    threads = max(1, (os.cpu_count() or 2) - 1)
    training = config(
        batch, updates=updates, zero_stage=1, log_every=max(1, updates // 3), save_every=10 * updates,
        input={"loader_threads": threads},
    )  # fmt: skip
    job = Job(
        config=training, model=model_config(variant), resolution=RESOLUTION,
        dataset=read_output(storage, "stages/ingest/x/attempts/1"), splits=("train",), evaluation={},
        class_ids=tuple(range(10)), updates=updates, seed=0,
    )  # fmt: skip
    train(job, rank_of(storage, "stages/pretrain/loader", 0, 1))
    points = MetricReader(storage, "stages/pretrain/loader/attempts/1").new_points()
    last = {point.name.removeprefix("train/"): point.value for point in points}
    return {"threads": threads, **{name: round(last[name], 4) for name in ("images_per_s", "data_wait", "mfu")}}


# What they share


def model_config(variant: str) -> ModelConfig:
    return ModelConfig.model_validate({"variant": variant, "patch_size": PATCH[variant]})


def network(variant: str) -> VisionTransformer:
    model = VisionTransformer(model_config(variant), RESOLUTION, CLASSES)
    initialize(model, 0)
    return model


def config(batch: int, **fields: Any) -> TrainingConfig:
    settings = {"updates": 1, "global_batch": batch, "precision": "bf16", "lr": 1e-4, "weight_decay": 0.1, "workers": 0}
    return TrainingConfig.model_validate({**settings, "gpus_per_worker": 0 if ON_CPU else 1, **fields})


def examples(batch: int) -> Any:
    import numpy as np

    from stages.data.batches import Batch

    images = torch.randint(0, 256, (batch, RESOLUTION, RESOLUTION, 3), dtype=torch.uint8)
    return Batch(images=images, labels=torch.arange(batch) % CLASSES, samples=np.arange(batch))


def rate(update: Callable[[int], None], batch: int) -> float:
    """Images/s of the updates after the first ones."""
    for number in range(WARM):
        update(number)
    synchronize()
    began = time.perf_counter()
    for number in range(COUNTED):
        update(WARM + number)
    synchronize()
    return round(COUNTED * batch / (time.perf_counter() - began), 2)


def synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def pictures(folder: Path, count: int) -> Path:
    """JPEGs of 500 × 375 pixels and about 40 kB, ten classes: coloured clouds, since speed alone is measured."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for number in range(count):
        small = Image.fromarray(random.integers(0, 256, (94, 125, 3), dtype=np.uint8))
        body = io.BytesIO()
        small.resize((500, 375), Image.Resampling.BICUBIC).save(body, "JPEG", quality=80)
        path = folder / f"class-{number % 10}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body.getvalue())
    return folder


TURNS: dict[str, Callable[..., dict[str, Any]]] = {
    "machine": machine, "step": step, "timm": timm, "loader": loader,
}  # fmt: skip

if __name__ == "__main__":
    print(json.dumps(TURNS[sys.argv[1]](*json.loads(sys.argv[2]))))
