from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.storage import Storage
from stages.context import Output, Result
from stages.fewshot.config import FewshotConfig
from stages.fewshot.run import run
from stages.ingest.config import DigitsSource, IngestConfig
from stages.ingest.run import run as run_ingest
from stages.models.vit import VisionTransformer
from tests.unit.stages.models.outputs import commit_model, file_storage, stage_context


class Evaluation:
    """A few-shot stage without the runner, on the real digits with three classes held out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.storage: Storage = file_storage(folder / "root")
        self.dataset = self.ingested(held_out_classes=3)
        self._folders = 0

    def ingested(self, seed: int = 0, **fields: Any) -> Output:
        config = IngestConfig(source=DigitsSource(), samples_per_shard=500, **fields)
        name = "-".join(f"{key}-{value}" for key, value in {"seed": seed, **fields}.items())
        return run_ingest(config, {}, replace(stage_context(self.storage, f"stages/ingest/{name}"), seed=seed)).output

    def committed(self, model: VisionTransformer, **meta: Any) -> Output:
        """As pretraining from seed 5 on the digits would leave it."""
        self._folders += 1
        context = stage_context(self.storage, f"stages/pretrain/{self._folders}")
        seen = [label for label in range(10) if label not in self.dataset.meta["held_out"]]
        own = {"trained_on": self.dataset.digest, "seed": 5, "class_ids": seen}
        return commit_model(context, model, **{**own, **meta})

    def config(self, **fields: Any) -> FewshotConfig:
        cache = {"cache": str(self.folder / "cache"), "loader_threads": 0}
        settings = {"data": "ingest", "from": "pretrain", "shots": (1, 2, 10), "draws": 3, "threads": 1, "input": cache}
        return FewshotConfig.model_validate({**settings, **fields})

    def run(self, model: Output, attempt: int = 1, dataset: Output | None = None, **fields: Any) -> Result:
        threads = torch.get_num_threads()
        context = stage_context(self.storage, f"stages/fewshot/{Path(model.prefix).parts[2]}", attempt)
        try:
            return run(self.config(**fields), {"data": dataset or self.dataset, "model": model}, context)
        finally:
            torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    return Evaluation(tmp_path_factory.mktemp("fewshot"))
