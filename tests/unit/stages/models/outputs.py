"""Small models, and model outputs committed as pretraining commits them (`stages/training/run.py`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cluster.storage import Storage, open_storage
from stages.context import Context, Output
from stages.models.build import Network
from stages.models.config import ModelConfig
from stages.models.download import WEIGHTS
from stages.models.store import model_bytes
from stages.models.vit import VisionTransformer


def small_config(**fields: Any) -> ModelConfig:
    return ModelConfig.model_validate(
        {"width": 16, "depth": 2, "mlp_dim": 32, "num_heads": 2, "patch_size": 4, **fields}
    )


def random_model(seed: int, resolution: int = 8, num_classes: int = 7, **fields: Any) -> VisionTransformer:
    """A small model in evaluation mode, every tensor random: no part of it can be left out unnoticed."""
    model = VisionTransformer(small_config(**fields), resolution, num_classes).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return model


def random_images(count: int, resolution: int, seed: int = 0) -> torch.Tensor:
    return torch.rand((count, 3, resolution, resolution), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def file_storage(folder: Path) -> Storage:
    return open_storage(f"file://{folder}")


def stage_context(storage: Storage, folder: str, attempt: int = 1) -> Context:
    def in_place(function, items, *, label, **place):
        return [function(item) for item in items]

    def no_gang(function, argument, *, workers, cpus, gpus, **_):
        raise AssertionError("this stage has no gang")

    return Context(storage=storage, folder=folder, attempt=attempt, seed=0, tasks=in_place, gang=no_gang)


def commit_model(context: Context, model: Network, **meta: Any) -> Output:
    file = context.write(WEIGHTS, model_bytes(model.state_dict()))
    labels = range(model.num_classes)
    described = {
        "format": 1,
        "model": model.config.model_dump(mode="json"),
        "resolution": model.resolution,
        "num_classes": model.num_classes,
        "classes": [str(label) for label in labels],
        "class_ids": list(labels),
        "seed": 5,
        "trained_on": "0" * 64,
        "update": 1,
        "images_seen": 32,
    }
    return context.commit("model", [file], {**described, **meta})
