"""The turns of `tests.bench.train`: each is a process that prints its figures as JSON."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch

from cluster.storage import open_storage
from stages.context import Context, read_output
from stages.data.batches import Batch
from stages.data.pixels import normalise
from stages.ingest.config import FolderSource, IngestConfig
from stages.ingest.run import run as run_ingest
from stages.models.config import ModelConfig
from stages.models.initialize import initialize
from stages.models.vit import VisionTransformer
from stages.training.checkpoint import CheckpointWriter
from stages.training.config import TrainingConfig
from stages.training.devices import keep_freed_memory, leave_distributed
from stages.training.engine import Engine
from stages.training.job import Job
from stages.training.keeping import KeepRule
from stages.training.loop import train
from stages.training.manifest import Position
from tests.bench.ingest import make_photos
from tests.bench.ranks import rank_of
from tests.bench.train import BATCH, UPDATES, rate

IMAGES, CLASSES, RANK_BATCH, RANK_UPDATES = 2000, 10, 32, 14


def prepare(scratch: Path) -> dict[str, Any]:
    """Photographs in local tars."""
    storage = open_storage(f"file://{scratch}/root")
    context = Context(
        storage=storage, folder="stages/ingest/x", attempt=1, seed=0, gang=None,  # type: ignore[arg-type]
        tasks=lambda function, items, label: [function(item) for item in items],
    )  # fmt: skip
    source = FolderSource(path=str(make_photos(scratch / "photos", IMAGES)))
    config = IngestConfig(source=source, validation_fraction=0.0, test_fraction=0.0)
    return {"images": run_ingest(config, {}, context).metrics["images"]}


def bare(scratch: Path, turn: str) -> dict[str, Any]:
    """A plain PyTorch loop in bf16 autocast, on one batch in memory."""
    return bare_loop(network("S"))


def timm(scratch: Path, turn: str) -> dict[str, Any]:
    """The same over timm's network."""
    keep_freed_memory(torch.device("cpu"))
    name = "vit_small_patch16_224"
    return bare_loop(importlib.import_module("timm").create_model(name, num_classes=CLASSES, act_layer="gelu_tanh"))


def bare_loop(model: torch.nn.Module) -> dict[str, Any]:
    torch.set_num_threads(os.cpu_count() or 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    images, labels = random_images(BATCH), torch.arange(BATCH) % CLASSES
    times = []
    for _ in range(UPDATES):
        bare_update(model, model, optimizer, images, labels)
        times.append(time.perf_counter())
    return {"images_per_s": rate(times, BATCH)}


def bare_same_malloc(scratch: Path, turn: str) -> dict[str, Any]:
    keep_freed_memory(torch.device("cpu"))
    return bare(scratch, turn)


def bare_update(model: Any, parameters: Any, optimizer: Any, images: torch.Tensor, labels: torch.Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(normalise(images))
    loss = torch.nn.functional.cross_entropy(logits.float(), labels)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def stage(scratch: Path, turn: str) -> dict[str, Any]:
    """The whole stage on one rank: loader, engine, metrics, checkpoints."""
    storage = open_storage(f"file://{scratch}/root")
    config = training_config(updates=UPDATES, save_every=50, log_every=10, global_batch=BATCH)
    job = Job(
        config=config, model=ModelConfig(variant="S"), resolution=224,
        dataset=read_output(storage, "stages/ingest/x/attempts/1"), splits=("train",), evaluation={},
        class_ids=tuple(range(CLASSES)), updates=UPDATES, seed=0,
    )  # fmt: skip
    times: list[float] = []
    step = Engine.step

    def timed(engine: Engine, *arguments: Any, **options: Any) -> Any:
        pending = step(engine, *arguments, **options)
        times.append(time.perf_counter())
        return pending

    Engine.step = timed
    folder = f"stages/pretrain/{turn}"
    train(job, rank_of(storage, folder, 0, 1))
    shutil.rmtree(scratch / "root" / folder)
    return {"images_per_s": rate(times, BATCH)}


def ddp(scratch: Path) -> dict[str, Any]:
    """Two ranks of DistributedDataParallel, one thread each."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method="env://")
    plain = network("S")
    model = torch.nn.parallel.DistributedDataParallel(plain)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    images, labels = random_images(RANK_BATCH), torch.arange(RANK_BATCH) % CLASSES
    times = []
    for _ in range(RANK_UPDATES):
        bare_update(model, plain, optimizer, images, labels)
        times.append(time.perf_counter())
    dist.destroy_process_group()
    return {"images_per_s": rate(times, 2 * RANK_BATCH)}


def ddp_same_malloc(scratch: Path) -> dict[str, Any]:
    keep_freed_memory(torch.device("cpu"))
    return ddp(scratch)


def zero2(scratch: Path) -> dict[str, Any]:
    """Two ranks of our engine with ZeRO 2, one thread each."""
    torch.set_num_threads(1)
    keep_freed_memory(torch.device("cpu"))
    config = training_config(updates=RANK_UPDATES, workers=2, global_batch=2 * RANK_BATCH, zero_stage=2)
    engine = Engine(network("S"), config, 2, 0)
    times = []
    for update in range(RANK_UPDATES):
        engine.step(random_batch(RANK_BATCH), 1e-4, seed=(0, update, 0)).report()
        times.append(time.perf_counter())
    leave_distributed()
    return {"images_per_s": rate(times, 2 * RANK_BATCH)}


def saving(scratch: Path, variant: str) -> dict[str, Any]:
    """Seconds of a checkpoint on local disk: how long training stands, and how long it takes in all."""
    torch.set_num_threads(os.cpu_count() or 1)
    storage = open_storage(f"file://{scratch}/saving")
    engine = Engine(network(variant), training_config(updates=1, global_batch=1, precision="fp32"), 1, 0)
    engine.step(random_batch(1), 1e-4, seed=(0, 0, 0)).report()
    rank = rank_of(storage, "stages/pretrain/saving", 0, 1)
    found: dict[str, list[float]] = {"stall_seconds": [], "synchronous_seconds": [], "deepspeed_seconds": []}
    writer = CheckpointWriter(rank, None, {}, KeepRule(storage=storage, last=1))
    for turn in range(3):
        began = time.perf_counter()
        writer.save(engine, Position(data="", update=turn + 1))
        found["stall_seconds"].append(time.perf_counter() - began)
        writer.wait()
        found["synchronous_seconds"].append(time.perf_counter() - began)
        began = time.perf_counter()
        engine._engine.save_checkpoint(str(scratch / "deepspeed"), tag=str(turn))
        found["deepspeed_seconds"].append(time.perf_counter() - began)
        ours, theirs = (size_below(scratch / name) for name in ("saving", "deepspeed"))
        shutil.rmtree(scratch / "saving")
        shutil.rmtree(scratch / "deepspeed")
    # The first turn makes the memory for the copy, as the first checkpoint of a run does.
    medians = {name: round(sum(values[1:]) / 2, 3) for name, values in found.items()}
    return {**medians, "megabytes": round(ours / 1e6), "deepspeed_megabytes": round(theirs / 1e6)}


# What they share


def network(variant: Any) -> VisionTransformer:
    model = VisionTransformer(ModelConfig(variant=variant), 224, CLASSES)
    initialize(model, 0)
    return model


def training_config(**fields: Any) -> TrainingConfig:
    settings = {
        "precision": "bf16",
        "zero_stage": 1,
        "lr": 1e-4,
        "weight_decay": 0.1,
        "threads": os.cpu_count(),
        "workers": 0,
    }
    return TrainingConfig.model_validate({**settings, **fields})


def random_images(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 224, 224, 3), dtype=torch.uint8)


def random_batch(count: int) -> Batch:
    import numpy as np

    return Batch(images=random_images(count), labels=torch.arange(count) % CLASSES, samples=np.arange(count))


def size_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


CHILDREN = {
    turn.__name__: turn for turn in (prepare, bare, bare_same_malloc, timm, stage, ddp, ddp_same_malloc, zero2, saving)
}

if __name__ == "__main__":
    name, folder, *words = sys.argv[1:]
    print(json.dumps(CHILDREN[name](Path(folder), *words)))
