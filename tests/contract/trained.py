"""A workflow of the digits that has really run, two fine-tunings among its stages, and servers of MLflow for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.storage import Storage, open_storage
from pipeline.config import Workflow, parse_workflow
from pipeline.mlflow_models import Registry
from pipeline.mlflow_runs import Runs
from pipeline.register import finished_stages
from pipeline.register_config import RegisterConfig
from pipeline.registering import Registered, Registration
from pipeline.reuse import Finished
from tests.unit.pipeline.finished import copied, run_to_its_end

TRAINING = """
    global_batch: 64
    workers: 0
    threads: 1
    input: {streams: 2, window: 256, flip: false, loader_threads: 0, evaluation: {method: resize_then_crop, size: 32}}
"""
TEXT = f"""
name: small
stages:
  ingest: {{source: {{kind: digits}}, samples_per_shard: 400, held_out_classes: 3}}
  pretrain:
    data: ingest
    model: {{width: 32, depth: 2, num_heads: 2, mlp_dim: 64, patch_size: 4}}
    resolution: 16
    updates: 4
    lr: 0.002{TRAINING}
  finetune: &finetune
    data: ingest
    from: pretrain
    resolution: 24
    updates: 8
    lr: 0.1{TRAINING}
  worse:
    <<: *finetune
    kind: finetune
    updates: 1
    lr: 0.0001
  of_worse: {{kind: evaluate, data: ingest, from: worse}}
  fewshot: {{data: ingest, from: pretrain, shots: [1, 5], draws: 2, baselines: []}}
"""
METRIC = "finetune/test/accuracy"


def flow(register: str = "") -> Workflow:
    return parse_workflow(TEXT + register, "small.yaml")


def wanted(stage: str = "finetune", metric: str | None = METRIC) -> RegisterConfig:
    champion = {"metric": metric} if metric is not None else None
    return RegisterConfig.model_validate({"name": "small", "from": stage, "champion": champion})


@dataclass(frozen=True)
class Trained:
    """The workflow, where it lies, and an empty MLflow database."""

    folder: Path
    workflow_id: str
    workflow: Workflow
    storage: Storage
    done: Mapping[str, Finished]
    empty: Path

    def database(self, folder: Path) -> str:
        """The address of an MLflow of a test's own."""
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.empty, folder / "mlflow.db")
        return f"sqlite:///{folder}/mlflow.db"

    def apart(self, folder: Path) -> Trained:
        """The same in a root of a test's own, for workflows that others are not to find."""
        return replace(self, storage=copied(self.folder / "root", folder / "root"))

    def runs(self, uri: str) -> Runs:
        found = Runs(uri, self.workflow_id, lambda: True, self.storage.url)
        found.connect()
        return found

    def registration(self, config: RegisterConfig | None = None) -> Registration:
        return Registration(self.storage, self.workflow_id, self.workflow, config or wanted(), self.done)

    def register(self, uri: str, config: RegisterConfig | None = None, client: Any = None) -> Registered:
        runs = self.runs(uri)
        registry = Registry(client or runs.client, runs.experiment)
        return self.registration(config).run(registry, runs.find)


@contextmanager
def environment_kept() -> Iterator[None]:
    """What several tests use is made before the environment of one is kept, in which MLflow leaves its address."""
    saved = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(saved)


def train(folder: Path) -> Trained:
    root, workflow_id = run_to_its_end(folder / "root", flow())
    storage = open_storage(f"file://{root}")
    done = finished_stages(storage, workflow_id, flow(), "finetune")
    runs = Runs(f"sqlite:///{folder}/mlflow.db", workflow_id, lambda: True, storage.url)
    runs.connect()
    # Without our experiment, whose files would go where this database was first.
    runs.client.rename_experiment(runs.experiment, "another")
    return Trained(folder, workflow_id, flow(), storage, done, folder / "mlflow.db")
