"""Tiny networks really trained, fine-tuned and evaluated, once for all tests; and outputs made by hand."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import Storage
from stages.context import Output, Result, canonical_json
from stages.fewshot.config import FewshotConfig
from stages.fewshot.run import run as run_fewshot
from stages.finetune.config import FinetuneConfig
from stages.finetune.run import run as run_finetune
from stages.pretrain.config import PretrainConfig
from stages.pretrain.run import run as run_pretrain
from stages.scaling.config import ScalingConfig
from stages.scaling.run import run
from stages.subset.config import SubsetConfig
from stages.subset.run import run as run_subset
from tests.unit.stages.chain import SMALL, Stages
from tests.unit.stages.models.outputs import file_storage, stage_context

Outputs = Mapping[str, Output]
COUNT = itertools.count()


def scaled(storage: Storage, pretrained: Outputs, finetuned: Outputs, fewshot: Outputs, **fields: Any) -> Result:
    """The stage, given outputs by the names of their stages."""
    groups = {"pretrained": pretrained, "finetuned": finetuned, "fewshot": fewshot}
    config = ScalingConfig.model_validate({**{field: list(group) for field, group in groups.items()}, **fields})
    inputs = {
        f"{field}.{number}": output for field, group in groups.items() for number, output in enumerate(group.values())
    }
    return run(config, inputs, stage_context(storage, f"stages/scaling/{next(COUNT)}"))


def read_rows(storage: Storage, result: Result, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(storage.read(result.output.key(name)).decode())))


@dataclass(frozen=True, kw_only=True)
class Trained:
    """By the names of stages, which say nothing of what belongs together."""

    storage: Storage
    configs: dict[str, PretrainConfig]
    pretrained: dict[str, Output]
    finetuned: dict[str, Output]
    fewshot: dict[str, Output]
    accuracies: dict[str, tuple[float, float]]
    """Fine-tuned and five-shot, by the pretrained model's stage."""


@pytest.fixture(scope="session")
def trained(ingested_digits: tuple[Stages, Output], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Two widths, two nested subsets, two seeds of one of these."""
    stages, dataset = ingested_digits
    subset = SubsetConfig.model_validate({"data": "ingest", "fraction": 0.25})
    quarter = run_subset(subset, {"data": dataset}, stages.context("scaling-subset")).output
    cache = {"cache": str(tmp_path_factory.mktemp("cache")), "loader_threads": 0}
    found = Trained(storage=stages.storage, configs={}, pretrained={}, finetuned={}, fewshot={}, accuracies={})
    plan = {"a": (16, dataset, 0), "b": (16, quarter, 0), "c": (32, dataset, 0), "d": (32, quarter, 0),
            "e": (32, quarter, 1)}  # fmt: skip
    for name, (width, data, seed) in plan.items():
        model = {"width": width, "depth": 1, "mlp_dim": 2 * width, "num_heads": 2, "patch_size": 4}
        own = {**SMALL, "data": "x", "model": model, "resolution": 16, "lr": 0.003, "updates": 20, "log_every": 20}
        config = PretrainConfig.model_validate(own)
        context = replace(stages.context(f"scaling-{name}"), seed=seed)
        pretrained = run_pretrain(config, {"data": data}, context).output
        inputs = {"data": dataset, "model": pretrained}
        finetune = FinetuneConfig.model_validate(
            {**SMALL, "data": "x", "from": name, "resolution": 16, "updates": 10, "lr": 0.1}
        )
        tuned = run_finetune(finetune, inputs, stages.context(f"scaling-{name}-tuned"))
        fewshot = FewshotConfig.model_validate(
            {"data": "x", "from": name, "shots": (1, 5), "draws": 2, "threads": 1, "baselines": (), "input": cache}
        )
        evaluated = run_fewshot(fewshot, inputs, stages.context(f"scaling-{name}-fewshot"))
        found.configs[name], found.pretrained[name] = config, pretrained
        # Neither in the order of the pretrained models, nor called as they are.
        found.finetuned[f"tuned-{len(plan) - len(found.finetuned)}"] = tuned.output
        found.fewshot[f"shots-{'cadbe'['abcde'.index(name)]}"] = evaluated.output
        found.accuracies[name] = (tuned.metrics["test/accuracy"], evaluated.metrics["features/all/5_shot"])
    return replace(
        found, finetuned=dict(reversed(found.finetuned.items())), fewshot=dict(sorted(found.fewshot.items()))
    )


class ByHand:
    """Outputs that say what those of real stages say, without weights."""

    def __init__(self, folder: Path) -> None:
        self.storage = file_storage(folder)
        self._count = itertools.count()

    def pretrained(self, width: int = 16, images: int = 1000, seen: int = 5000, seed: int = 0, **meta: Any) -> Output:
        model = {"width": width, "depth": 2, "mlp_dim": 2 * width, "num_heads": 2, "patch_size": 4}
        own = {"format": 1, "model": model, "resolution": 8, "num_classes": 10, "seed": seed, "metrics": {}}
        return self._commit("model", {**own, "train_images": images, "images_seen": seen, **meta})

    def finetuned(self, model: Output, accuracy: float, data: str = "pets", **meta: Any) -> Output:
        metrics = {"test/accuracy": accuracy, "test/loss": 1.0, "raw/test/accuracy": accuracy / 2}
        own = {"trained_on": data, "train_images": 10, "pretrained": model.digest, "metrics": metrics}
        return self._commit("model", {**own, **meta})

    def fewshot(self, models: Sequence[Output], accuracies: Sequence[float], data: str = "pets", **row: Any) -> Output:
        """Of the features of one model or several, on one data set."""
        features = {f"f{i}": {"model": model.digest, "dataset": data} for i, model in enumerate(models)}
        rows = [
            {"data": f"f{i}", "class_set": "all", "features": kind, "classifier": "least_squares", "shots": shots,
             "accuracy": accuracy * part, **row}
            for i, accuracy in enumerate(accuracies)
            for kind, part in (("untrained", 0.3), ("features", 1.0))
            for shots in (1, 5)
        ]  # fmt: skip
        return self._commit("evaluation", {"fewshot": rows}, {"features.json": canonical_json(features)})

    def _commit(self, kind: str, meta: dict[str, Any], files: Mapping[str, bytes] | None = None) -> Output:
        context = stage_context(self.storage, f"stages/{kind}/{next(self._count)}")
        return context.commit(kind, [context.write(name, body) for name, body in (files or {}).items()], meta)

    def scaled(
        self,
        pretrained: Sequence[Output],
        finetuned: Sequence[Output] = (),
        fewshot: Sequence[Output] = (),
        **fields: Any,
    ) -> Result:
        """Stages are called p0, p1, …, t0, … and s0, …."""
        named = [
            {f"{letter}{i}": output for i, output in enumerate(outputs)}
            for letter, outputs in (("p", pretrained), ("t", finetuned), ("s", fewshot))
        ]
        return scaled(self.storage, *named, **fields)


@pytest.fixture
def by_hand(tmp_path: Path) -> ByHand:
    return ByHand(tmp_path)
