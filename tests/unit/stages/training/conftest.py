from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import Storage, open_storage
from stages.context import Context, Keep, Output, Rank, Rollback, StopRequest
from stages.ingest.config import DigitsSource, IngestConfig
from stages.ingest.run import run as run_ingest
from stages.models.config import ModelConfig
from stages.training.config import TrainingConfig
from stages.training.engine import Engine
from stages.training.job import Job


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Storage, Output]:
    """The real digits, ingested."""
    storage = open_storage(f"file://{tmp_path_factory.mktemp('digits')}")
    context = Context(
        storage=storage, folder="stages/ingest/x", attempt=1, seed=0, gang=None,
        tasks=lambda function, items, label: [function(item) for item in items],
    )  # fmt: skip
    config = IngestConfig(source=DigitsSource(), samples_per_shard=300, held_out_classes=3)
    return storage, run_ingest(config, {}, context).output


class Stage:
    """A pretraining's folder without the runner: remembers the committed checkpoint, stops when asked."""

    def __init__(self, storage: Storage, dataset: Output, folder: str) -> None:
        self.storage, self.dataset, self.folder = storage, dataset, folder
        self.kept: dict[int, str] = {}
        self.rollbacks: tuple[Rollback, ...] = ()
        self.commits: list[int] = []
        self.attempt = 0

    def job(self, **fields: Any) -> Job:
        settings = {"updates": 8, "global_batch": 32, "lr": 0.01, "log_every": 1, "save_every": 3, "threads": 1}
        data = {"flip": False, "streams": 2, "window": 64, "loader_threads": 0}
        model = {"width": 16, "depth": 1, "mlp_dim": 32, "num_heads": 2, "patch_size": 8, **fields.pop("model", {})}
        config = TrainingConfig.model_validate({**settings, "input": data, **fields})
        held_out = self.dataset.meta["held_out"]
        return Job(
            config=config,
            model=ModelConfig.model_validate(model),
            resolution=16,
            dataset=self.dataset,
            splits=("train",),
            evaluation={"validation": ("validation",)},
            class_ids=tuple(i for i in range(10) if i not in held_out),
            updates=config.total_updates(1000),
            seed=5,
        )

    @property
    def checkpoint(self) -> str | None:
        """The newest committed one."""
        return self.kept[max(self.kept)] if self.kept else None

    def rank(self, stop: Callable[[], bool] = lambda: False) -> Rank:
        self.attempt += 1

        def commit(prefix: str, update: int, keep: Keep) -> list[str]:
            self.commits.append(update)
            self.kept[update] = prefix
            return [self.kept.pop(other) for other in set(self.kept) - set(keep(dict(sorted(self.kept.items()))))]

        return Rank(
            rank=0, world_size=1, local_rank=0, storage=self.storage, folder=self.folder, attempt=self.attempt,
            checkpoint=self.checkpoint, commit_checkpoint=commit, rollbacks=self.rollbacks,
            stop_requested=lambda: StopRequest(reason="cancelled") if stop() else None,
        )  # fmt: skip

    def losses(self, attempt: int) -> dict[int, float]:
        found = {}
        for key in self.storage.list(f"{self.folder}/attempts/{attempt}/metrics/"):
            for line in self.storage.read(key).splitlines():
                point = json.loads(line)
                if point["name"] == "train/loss":
                    found[point["step"]] = point["value"]
        return found

    def weights(self, attempt: int) -> bytes:
        return self.storage.read(f"{self.folder}/attempts/{attempt}/model.safetensors")


@pytest.fixture
def make_stage(digits: tuple[Storage, Output], tmp_path: Path) -> Callable[[str], Stage]:
    storage, dataset = digits
    return lambda name: Stage(storage, dataset, f"stages/pretrain/{tmp_path.name}-{name}")


@pytest.fixture(params=[0, 1], ids=["lag 0", "lag 1"])
def lag(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Updates that are in flight before anybody looks at them: 0 as on CPUs, and 1 as on GPUs."""
    make = Engine.__init__

    def made(self: Engine, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **options)
        self.lag = request.param

    monkeypatch.setattr(Engine, "__init__", made)
    return request.param
