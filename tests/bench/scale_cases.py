"""What docs/scale.md reckons with: clusters, models, data sets, and what was measured, assumed or published."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.shapes import GPUS
from pipeline.estimate import ASSUMED_EFFICIENCY
from pipeline.estimate_failures import COPY_BYTES_PER_S, commit_seconds, restart_seconds
from pipeline.estimate_reading import ASSUMED_IMAGE_BYTES
from stages.models.config import ModelConfig
from stages.training.config import TrainingConfig
from stages.training.interval import Failures
from stages.training.memory import Network, checkpoint_bytes

MEASURED: dict[str, Any] = json.loads((Path(__file__).parent / "scale_constants.json").read_text())
"""By `python -m tests.bench.scale record`, of the real code."""
GPUS_EACH = (64, 256, 1024)
PER_MACHINE = 8
IMAGE_BYTES = ASSUMED_IMAGE_BYTES
TAR_BYTES = 256 * 2**20
"""The default of ingestion."""
PER_TAR = TAR_BYTES // IMAGE_BYTES
BUCKET_BYTES_PER_S = 1e9
"""Assumed, of each machine."""
DISK_BYTES = 24e12
"""Assumed: 80 % of 30 TB in each machine, which the cache may take."""
MACHINE_MTBF_HOURS = 54 * 24 * (16_384 / 8) / 419
"""419 unexpected interruptions in 54 days of 16,384 GPUs: Llama 3's, of a machine of eight."""

DATA = {
    "ImageNet-1k": 1_281_167,
    "ImageNet-21k": 14_197_122,
    "JFT's size": 303_000_000,
    "10^9": 10**9,
    "10^10": 10**10,
}
"""Images."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training on a cluster of H100s."""

    title: str
    model: ModelConfig
    global_batch: int
    gpus: int

    @property
    def machines(self) -> int:
        return self.gpus // PER_MACHINE

    @property
    def network(self) -> Network:
        return Network(model=self.model, resolution=224, num_classes=1000)

    @property
    def update_seconds(self) -> float:
        """By the data sheet's rate and the efficiency that `plan` assumes; no network between machines."""
        rate = self.gpus * GPUS["h100"].half_tflops * 1e12 * ASSUMED_EFFICIENCY
        return 6 * self.network.macs * self.global_batch / rate

    @property
    def images_per_s(self) -> float:
        return self.global_batch / self.update_seconds

    @property
    def checkpoint_bytes(self) -> int:
        """fp32 weights and AdamW's two moments."""
        return checkpoint_bytes(TrainingConfig(updates=1), self.network.parameters)

    @property
    def upload_seconds(self) -> float:
        return self.checkpoint_bytes / self.machines / BUCKET_BYTES_PER_S

    def failures(self, machine_hours: float = MACHINE_MTBF_HOURS) -> Failures:
        return Failures(
            between=machine_hours * 3600 / self.machines,
            restart=restart_seconds(self.gpus, self.machines),
            copy=self.checkpoint_bytes / self.gpus / COPY_BYTES_PER_S,
            upload=self.upload_seconds + commit_seconds(self.gpus),
        )


def run(variant: str, gpus: int, global_batch: int = 4096) -> Run:
    """ViT-L/16, H/14 or G/14 on so many GPUs."""
    model = ModelConfig.model_validate({"variant": variant, "patch_size": 16 if variant == "L" else 14})
    return Run(title=model.title, model=model, global_batch=global_batch, gpus=gpus)


PAPER = (run("L", 64), run("H", 256), run("G", 1024, 16_384))
"""A model for each cluster: what `docs/scale.md` calls the three runs."""
