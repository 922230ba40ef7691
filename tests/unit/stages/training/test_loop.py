import itertools

import numpy as np
import pytest
import torch

from stages.data.loader import TrainLoader
from stages.data.pixels import normalise
from stages.models.vit import VisionTransformer, initialize
from stages.training import engine
from stages.training.loop import train
from stages.training.objectives import cross_entropy
from stages.training.optimizer import make_optimizer
from stages.training.schedule import learning_rate


def plain_losses(stage, job) -> list[float]:
    """The same training as a bare PyTorch loop, without DeepSpeed, checkpoints or gangs."""
    torch.set_num_threads(1)
    model = VisionTransformer(job.model, job.resolution, len(job.class_ids))
    initialize(model, job.seed)
    optimizer = make_optimizer(model, job.config)
    losses = []
    with TrainLoader(
        stage.storage, job.dataset, job.splits, job.config.input, resolution=job.resolution, seed=job.seed,
        global_batch=job.config.global_batch, rank=0, world_size=1, start=0, classes=job.class_ids,
    ) as loader:  # fmt: skip
        for update, batch in zip(range(1, job.updates + 1), loader, strict=False):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(job.config, update, job.updates)
            loss = cross_entropy(model(normalise(batch.images)), batch.labels, loss=job.config.loss)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), job.config.clip)
            optimizer.step()
            losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_losses_are_those_of_a_plain_loop(make_stage, zero_stage, optimizer):
    stage = make_stage("plain")
    decay = 0.1 if optimizer == "adamw" else 0.0
    fields = {"updates": 60, "save_every": 1000, "weight_decay": decay, "warmup_updates": 5}
    job = stage.job(zero_stage=zero_stage, optimizer=optimizer, **fields)
    train(job, stage.rank())
    found = stage.losses(1)
    assert list(found) == list(range(1, 61))
    np.testing.assert_allclose(list(found.values()), plain_losses(stage, job), rtol=0, atol=1e-5)


def test_accumulation_changes_rounding_alone(make_stage):
    whole, parts = make_stage("whole"), make_stage("parts")
    train(whole.job(), whole.rank())
    train(parts.job(micro_batch=8), parts.rank())
    np.testing.assert_allclose(list(whole.losses(1).values()), list(parts.losses(1).values()), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {"zero_stage": 2, "model": {"dropout": 0.2}},
        {"zero_stage": 3, "micro_batch": 16},
        {"zero_stage": 0},
        {"zero_stage": 1, "precision": "bf16"},
        {"zero_stage": 2, "optimizer": "sgd"},
    ],
    ids=str,
)
def test_a_stop_at_any_update_and_a_resume_give_the_same_bits(make_stage, fields):
    whole = make_stage("whole")
    train(whole.job(**fields), whole.rank())
    stage = make_stage("stopped")
    calls = itertools.count(1)
    stopped = train(stage.job(**fields), stage.rank(lambda: next(calls) >= 5))
    assert stopped["outcome"] == "stopped"
    assert stopped["request"] == {"reason": "cancelled", "notice_seconds": None}
    assert stage.commits == [3, 5]
    assert train(stage.job(**fields), stage.rank())["outcome"] == "done"
    assert list(stage.losses(2)) == [6, 7, 8]
    assert {**stage.losses(1), **stage.losses(2)} == whole.losses(1)
    assert stage.weights(2) == whole.weights(1)


def test_a_checkpoint_crosses_zero_stages(make_stage):
    whole, stage = make_stage("whole"), make_stage("crossing")
    train(whole.job(zero_stage=3), whole.rank())
    calls = itertools.count(1)
    train(stage.job(zero_stage=1), stage.rank(lambda: next(calls) >= 4))
    train(stage.job(zero_stage=3), stage.rank())
    found, expected = {**stage.losses(1), **stage.losses(2)}, whole.losses(1)
    np.testing.assert_allclose([found[u] for u in expected], list(expected.values()), rtol=0, atol=1e-5)


def test_a_finished_run_that_lost_its_record_exports_the_same_bytes_again(make_stage):
    stage = make_stage("again")
    first = train(stage.job(), stage.rank())
    second = train(stage.job(), stage.rank())
    assert stage.losses(2) == {}
    assert stage.weights(2) == stage.weights(1)
    assert first["metrics"] == second["metrics"]


def explode(monkeypatch, *updates: int) -> None:
    """Let the loss be no number whenever the engine computes these losses, counted from 1."""
    calls = itertools.count(1)

    def exploding(*arguments, **options):
        return cross_entropy(*arguments, **options) * (float("nan") if next(calls) in updates else 1.0)

    monkeypatch.setattr(engine, "cross_entropy", exploding)


def test_nothing_is_committed_after_a_loss_that_is_not_finite(make_stage, monkeypatch):
    stage = make_stage("nan")
    explode(monkeypatch, 5)
    outcome = train(stage.job(save_every=1), stage.rank())
    assert outcome == {
        "outcome": "rollback", "update": 5, "start": 4 * 32, "stop": 5 * 32, "reason": "the loss is nan",
    }  # fmt: skip
    assert stage.commits == [1, 2, 3, 4]


def test_final_metrics_are_measured_on_the_validation_split(make_stage):
    stage = make_stage("final")
    outcome = train(stage.job(updates=60), stage.rank())
    assert set(outcome["metrics"]) == {"validation/loss", "validation/accuracy"}
    assert outcome["metrics"]["validation/accuracy"] > 0.3
