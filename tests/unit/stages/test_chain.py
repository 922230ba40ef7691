"""The main job's four functions, one after the other, without the runner and without Ray."""

from __future__ import annotations

from stages.fewshot.config import FewshotConfig
from stages.fewshot.run import run as run_fewshot
from stages.finetune.config import FinetuneConfig
from stages.finetune.run import run as run_finetune
from stages.models.store import read_state
from stages.pretrain.config import PretrainConfig
from stages.pretrain.run import run as run_pretrain
from tests.unit.stages.chain import SMALL

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
