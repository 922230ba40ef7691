"""The main job's four functions, one after the other, without the runner and without Ray."""

from __future__ import annotations

import pytest
import torch

from cluster.errors import UserError
from stages.fewshot.config import FewshotConfig
from stages.fewshot.run import run as run_fewshot
from stages.finetune.config import FinetuneConfig
from stages.finetune.run import run as run_finetune
from stages.metrics import MetricReader
from stages.models.store import load_model, read_state
from stages.pretrain.config import PretrainConfig
from stages.pretrain.run import run as run_pretrain
from tests.unit.stages.chain import SMALL
from tests.unit.stages.models.outputs import random_images

MODEL = {"width": 32, "depth": 2, "mlp_dim": 64, "num_heads": 2, "patch_size": 4}


def test_ingest_pretrain_finetune_and_fewshot_fit_together(ingested_digits, tmp_path):
    stages, dataset = ingested_digits
    pretrain = PretrainConfig.model_validate(
        {**SMALL, "data": "ingest", "model": MODEL, "resolution": 16, "updates": 250, "lr": 0.003}
    )
    trained = run_pretrain(pretrain, {"data": dataset}, stages.context("chain-pretrain"))
    # Seven classes: one in seven is chance.
    assert trained.metrics["test/accuracy"] > 0.5

    finetune = FinetuneConfig.model_validate(
        {**SMALL, "data": "ingest", "from": "pretrain", "resolution": 24, "updates": 60, "lr": 0.03}
    )
    inputs = {"data": dataset, "model": trained.output}
    tuned = run_finetune(finetune, inputs, stages.context("chain-finetune"))
    assert tuned.metrics["test/accuracy"] > 0.2
    assert tuned.output.meta["resolution"] == 24
    assert read_state(stages.storage, tuned.output)["pos_embed"].shape == (1, 1 + 6 * 6, 32)

    fewshot = FewshotConfig.model_validate(
        {"data": "ingest", "from": "pretrain", "shots": (1, 5), "draws": 3, "threads": 1,
         "input": {"cache": str(tmp_path / "cache"), "loader_threads": 0}}
    )  # fmt: skip
    result = run_fewshot(fewshot, inputs, stages.context("chain-fewshot"))
    assert {row["class_set"] for row in result.tables["fewshot"]} == {"all", "seen", "held_out"}
    assert result.metrics["features/seen/5_shot"] > result.metrics["untrained/seen/5_shot"]


HYBRID = {"width": 32, "depth": 1, "mlp_dim": 64, "num_heads": 2, "patch_size": 2, "stem": {"blocks": (1,)}}
BIT = {"blocks": (1, 1, 1, 1)}


@pytest.mark.parametrize(
    ("kind", "model", "updates", "lr", "baselines"),
    [("hybrid", HYBRID, 60, 0.003, ("untrained",)), ("bit", BIT, 10, 0.001, ())],
    ids=["hybrid", "bit"],
)
def test_hybrids_and_resnets_go_the_same_way(ingested_digits, tmp_path, kind, model, updates, lr, baselines):
    stages, dataset = ingested_digits
    pretrain = PretrainConfig.model_validate(
        {**SMALL, "data": "ingest", "model": model, "resolution": 16, "updates": updates, "lr": lr}
    )
    trained = run_pretrain(pretrain, {"data": dataset}, stages.context(f"{kind}-pretrain"))
    points = MetricReader(stages.storage, f"stages/{kind}-pretrain/x/attempts/1").new_points()
    losses = [point.value for point in points if point.name == "train/loss"]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])

    finetune = FinetuneConfig.model_validate(
        {**SMALL, "data": "ingest", "from": "pretrain", "resolution": 24, "updates": 2, "lr": 0.003}
    )
    inputs = {"data": dataset, "model": trained.output}
    tuned = run_finetune(finetune, inputs, stages.context(f"{kind}-finetune"))
    network = load_model(stages.storage, tuned.output)
    assert (network.resolution, network.num_classes) == (24, 10)
    with torch.inference_mode():
        assert network(random_images(2, 24)).std() > 0

    fewshot = FewshotConfig.model_validate(
        {"data": "ingest", "from": "pretrain", "shots": (5,), "draws": 2, "threads": 1, "baselines": baselines,
         "input": {"cache": str(tmp_path / "cache"), "loader_threads": 0}}
    )  # fmt: skip
    result = run_fewshot(fewshot, inputs, stages.context(f"{kind}-fewshot"))
    assert result.metrics["features/seen/5_shot"] > 0.3
    assert all(f"{kind}/seen/5_shot" in result.metrics for kind in baselines)


def test_weights_go_on_in_a_resnet_and_dropout_is_refused(ingested_digits):
    stages, dataset = ingested_digits
    given = {**SMALL, "data": "ingest", "model": BIT, "resolution": 16, "updates": 1}
    first = run_pretrain(PretrainConfig.model_validate(given), {"data": dataset}, stages.context("bit-first"))
    before = read_state(stages.storage, first.output)
    again = PretrainConfig.model_validate({**given, "init_from": "first", "resolution": 20, "lr": 1e-30})
    inputs = {"data": dataset, "init_from": first.output}
    after = read_state(stages.storage, run_pretrain(again, inputs, stages.context("bit-second")).output)
    assert all(torch.equal(after[name], value) for name, value in before.items() if value.abs().min() > 1e-20)
    finetune = FinetuneConfig.model_validate(
        {**SMALL, "data": "ingest", "from": "first", "resolution": 16, "updates": 1, "dropout": 0.1}
    )
    with pytest.raises(UserError, match=r"dropout=0\.1: a ResNet has none"):
        run_finetune(finetune, {"data": dataset, "model": first.output}, stages.context("bit-dropout"))
