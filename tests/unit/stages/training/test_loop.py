import itertools
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch._inductor.config as inductor
from PIL import Image

from cluster.errors import UserError
from stages.data.loader import TrainLoader
from stages.data.pixels import normalise
from stages.ingest.run import run as run_ingest
from stages.metrics import MetricReader
from stages.models.build import build
from stages.models.config import model_config
from stages.models.initialize import initialize
from stages.training import engine, objectives
from stages.training.loop import train
from stages.training.objectives import cross_entropy
from stages.training.optimizer import make_optimizer
from stages.training.run import run_training
from stages.training.schedule import learning_rate
from tests.unit.stages.ingest.pictures import context, ingest
from tests.unit.stages.models.outputs import stage_context


def plain_losses(stage, job) -> list[float]:
    """The same training as a bare PyTorch loop, without DeepSpeed, checkpoints or gangs."""
    torch.set_num_threads(1)
    model = build(job.model, job.resolution, len(job.class_ids))
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
    fields = {"updates": 60, "save_every": 1000, "weight_decay": 0.1, "warmup_updates": 5}
    job = stage.job(zero_stage=zero_stage, optimizer=optimizer, **fields)
    train(job, stage.rank())
    found = stage.losses(1)
    assert list(found) == list(range(1, 61))
    np.testing.assert_allclose(list(found.values()), plain_losses(stage, job), rtol=0, atol=1e-5)


def test_training_that_waits_for_its_images_says_so_once(make_stage, tmp_path, capsys):
    """Photos that take longer to decode than a tiny network takes to learn of them."""
    photos = tmp_path / "photos"
    rows, columns = np.mgrid[:600, :800]
    for number in range(20):
        (photos / f"{number % 2}").mkdir(parents=True, exist_ok=True)
        levels = np.stack([rows * 3, columns + number, rows * columns // 7], axis=2).astype(np.uint8)
        Image.fromarray(levels).save(photos / f"{number % 2}" / f"{number}.jpg", quality=95)
    place = context(tmp_path)
    source = {"kind": "folder", "path": str(photos)}
    dataset = run_ingest(ingest(source, validation_fraction=0, test_fraction=0), {}, place).output
    stage = make_stage("waiting")
    stage.storage = place.storage
    job = replace(
        stage.job(updates=6, save_every=1000), dataset=dataset, class_ids=(0, 1), evaluation={}, resolution=16
    )
    assert train(job, stage.rank())["outcome"] == "done"
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("input-bound")]
    assert len(lines) == 1
    assert "The limit is decoding, by the training thread" in lines[0]


NETWORKS = {
    "hybrid": {
        "width": 16, "depth": 1, "mlp_dim": 32, "num_heads": 2, "patch_size": 2, "stem": {"blocks": (1,)}
    },
    "bit": {"blocks": (1, 1, 1, 1)},
}  # fmt: skip


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    "fields",
    [{"zero_stage": 0}, {"zero_stage": 2, "micro_batch": 8}, {"zero_stage": 3, "activation_checkpointing": True}],
    ids=str,
)
def test_losses_of_hybrids_and_resnets_are_those_of_a_plain_loop(make_stage, network, fields):
    stage = make_stage(network)
    job = replace(stage.job(updates=4, save_every=1000, lr=0.001, **fields), model=model_config(NETWORKS[network]))
    assert train(job, stage.rank())["outcome"] == "done"
    found = list(stage.losses(1).values())
    assert len(set(found)) == 4
    np.testing.assert_allclose(found, plain_losses(stage, job), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "fields",
    [
        {"micro_batch": 8},
        *({"zero_stage": stage, "activation_checkpointing": True} for stage in range(4)),
        *({"zero_stage": stage, "offload": "optimizer"} for stage in (1, 2, 3)),
        {"zero_stage": 3, "offload": "parameters"},
    ],
    ids=str,
)
def test_what_changes_rounding_alone(make_stage, fields):
    whole, other = make_stage("whole"), make_stage("other")
    train(whole.job(zero_stage=0), whole.rank())
    train(other.job(**fields), other.rank())
    np.testing.assert_allclose(list(whole.losses(1).values()), list(other.losses(1).values()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("zero_stage", [1, 3])
@pytest.mark.parametrize(
    "model",
    [
        {"position": "sincos_1d"},
        {"position": "sincos_2d", "pool": "attention"},
        {"position": "sincos_2d", "position_at": "each_layer"},
        {"position": "sincos_1d", "position_at": "each_layer_shared"},
        {"position": "learned_2d", "position_at": "each_layer"},
        {"position": "relative"},
        {"position": "none", "pool": "average", "head": "mlp_gelu", "stochastic_depth": 0.1},
        {"patch_size": 1, "stem": {"blocks": (1,)}},
    ],
    ids=str,
)
def test_networks_of_all_kinds_are_trained_in_bf16(make_stage, zero_stage, model):
    exact, rounded = make_stage("exact"), make_stage("rounded")
    for stage, precision in ((exact, "fp32"), (rounded, "bf16")):
        job = stage.job(updates=3, precision=precision, zero_stage=zero_stage, model=model)
        train(replace(job, evaluation={}), stage.rank())
    assert list(rounded.losses(1)) == [1, 2, 3]
    np.testing.assert_allclose(list(rounded.losses(1).values()), list(exact.losses(1).values()), rtol=0.05)


@pytest.mark.skipif(
    not any(shutil.which(name) for name in engine.COMPILERS), reason="compiling on a CPU needs a C++ compiler"
)
def test_compiling_changes_rounding_alone(make_stage, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    # Else it starts a pool of processes, which stay.
    monkeypatch.setattr(inductor, "compile_threads", 1)
    plain, compiled = make_stage("plain"), make_stage("compiled")
    # An evaluation would be compiled anew.
    train(replace(plain.job(updates=2), evaluation={}), plain.rank())
    train(replace(compiled.job(updates=2, compile=True), evaluation={}), compiled.rank())
    assert any((tmp_path / "compiled").rglob("*.so"))
    assert list(compiled.losses(1)) == [1, 2]
    np.testing.assert_allclose(list(compiled.losses(1).values()), list(plain.losses(1).values()), rtol=0, atol=1e-4)


def test_compiling_without_a_compiler_is_refused_and_names_it(make_stage, monkeypatch):
    monkeypatch.setattr(engine.shutil, "which", lambda name: None)
    stage = make_stage("without")
    with pytest.raises(UserError, match=r"compile=true needs a C\+\+ compiler .* set it to false"):
        train(stage.job(compile=True), stage.rank())


@pytest.mark.parametrize(
    "fields",
    [
        {"zero_stage": 2, "model": {"dropout": 0.2}},
        {"zero_stage": 3, "micro_batch": 16},
        {"zero_stage": 1, "model": {"patch_size": 2, "stem": {"blocks": (1,)}}},
        {"zero_stage": 0},
        {"zero_stage": 1, "precision": "bf16"},
        {"zero_stage": 3, "precision": "bf16"},
        {"zero_stage": 2, "optimizer": "sgd"},
        *(
            {
                "zero_stage": zero, "optimizer": "sgd", "weight_decay": 0.5, "head_weight_decay": 2.0,
                "decay": "steps", "decay_at": (4, 6), "polyak_decay": polyak,
            }
            for zero, polyak in ((0, 0.0), (2, 0.0), (3, 0.9))
        ),
        {"zero_stage": 2, "activation_checkpointing": True, "model": {"dropout": 0.2}},
    ],
    ids=str,
)  # fmt: skip
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


def test_a_stop_is_met_with_every_update_looked_at(make_stage, lag):
    whole, stage = make_stage("whole"), make_stage("stopped")
    train(whole.job(), whole.rank())
    calls = itertools.count(1)
    assert train(stage.job(), stage.rank(lambda: next(calls) >= 4))["outcome"] == "stopped"
    assert stage.commits == [3, 4 + lag]
    assert list(stage.losses(1)) == list(range(1, 5 + lag))
    assert train(stage.job(), stage.rank())["outcome"] == "done"
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

    monkeypatch.setattr(objectives, "cross_entropy", exploding)


def test_nothing_is_committed_after_a_loss_that_is_not_finite(make_stage, monkeypatch, lag):
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


def points(stage, attempt: int, name: str) -> dict[int, float]:
    """A metric of an attempt, by update."""
    found = MetricReader(stage.storage, f"{stage.folder}/attempts/{attempt}").new_points()
    return {point.step: point.value for point in found if point.name == name}


@pytest.mark.parametrize("asked", [3, 4], ids=["before the evaluation", "in the evaluation"])
@pytest.mark.parametrize("save_every", [3, 1000])
def test_a_stop_does_not_wait_for_an_evaluation_which_the_next_attempt_makes(make_stage, lag, asked, save_every):
    whole, stage = make_stage("whole"), make_stage("asked")
    fields = {"evaluate_every": 3, "save_every": save_every, "polyak_decay": 0.5}
    train(whole.job(**fields), whole.rank())
    calls = itertools.count(1)
    outcome = train(stage.job(**fields), stage.rank(lambda: next(calls) >= asked))
    assert outcome["outcome"] == "stopped"
    assert stage.commits == [3]
    assert list(stage.losses(1)) == [1, 2, 3]
    assert points(stage, 1, "validation/loss") == {}
    # Asked to stop before its first update too, it leaves all as it is.
    assert train(stage.job(**fields), stage.rank(lambda: True))["outcome"] == "stopped"
    assert (stage.commits, points(stage, 2, "validation/loss")) == ([3], {})
    assert train(stage.job(**fields), stage.rank())["outcome"] == "done"
    for name in ("validation/loss", "raw/validation/loss"):
        assert list(points(stage, 3, name)) == [3, 6]
        assert points(stage, 3, name) == points(whole, 1, name)
    assert stage.weights(3) == whole.weights(1)


def stopped_at_three(stage) -> dict[int, str]:
    """Before its evaluation; its checkpoints by update."""
    calls = itertools.count(1)
    train(stage.job(evaluate_every=3), stage.rank(lambda: next(calls) >= 3))
    return dict(stage.kept)


def test_a_branch_does_not_make_the_evaluation_that_is_due_in_its_trunk(make_stage):
    trunk, branch = make_stage("trunk"), make_stage("branch")
    branch.kept = stopped_at_three(trunk)
    train(replace(branch.job(evaluate_every=3), trunk_folder=trunk.folder), branch.rank())
    assert list(points(branch, 1, "validation/loss")) == [6]


def test_an_evaluation_that_was_due_and_that_nobody_wants_any_more_is_not_made(make_stage):
    stage = make_stage("other")
    stopped_at_three(stage)
    train(stage.job(evaluate_every=4), stage.rank())
    assert list(points(stage, 2, "validation/loss")) == [4]


def test_a_stop_in_an_evaluation_commits_no_loss_that_is_not_finite(make_stage, monkeypatch, lag):
    stage, calls = make_stage("nan"), itertools.count(1)
    explode(monkeypatch, 3)
    # The first look in the evaluation would be the fourth.
    rank = stage.rank(lambda: next(calls) >= 4)
    outcome = train(stage.job(evaluate_every=3, save_every=1000), rank)
    assert (outcome["outcome"], outcome["update"], outcome["reason"]) == ("rollback", 3, "the loss is nan")
    assert stage.commits == []


def test_a_stop_in_the_last_evaluation_leaves_the_rest_to_the_next_attempt(make_stage):
    whole, stage = make_stage("whole"), make_stage("late")
    train(whole.job(), whole.rank())
    calls = itertools.count(1)
    assert train(stage.job(), stage.rank(lambda: next(calls) > 8))["outcome"] == "stopped"
    assert stage.commits[-1] == 8
    assert train(stage.job(), stage.rank())["outcome"] == "done"
    assert stage.weights(2) == whole.weights(1)


def test_an_evaluation_has_no_more_images_at_once_than_training(make_stage, monkeypatch):
    sizes = []
    judge = engine.Engine.judge
    monkeypatch.setattr(
        engine.Engine, "judge", lambda self, batch: sizes.append(len(batch.images)) or judge(self, batch)
    )
    stage = make_stage("sizes")
    train(stage.job(updates=1, micro_batch=8), stage.rank())
    assert set(sizes) == {8}


def test_both_the_weights_and_their_average_are_evaluated_on_the_way(make_stage):
    stage = make_stage("both")
    train(stage.job(polyak_decay=0.5, evaluate_every=3), stage.rank())
    raw, averaged = points(stage, 1, "raw/validation/loss"), points(stage, 1, "validation/loss")
    assert list(raw) == list(averaged) == [3, 6]
    assert all(raw[update] != averaged[update] for update in raw)


def test_an_upload_that_fails_ends_the_attempt_at_once(make_stage):
    class Full:
        """A storage that takes no large object."""

        def __init__(self, storage):
            self._storage = storage

        def __getattr__(self, name):
            return getattr(self._storage, name)

        def writer(self, key):
            raise OSError(f"{key}: no space left")

    stage = make_stage("full")
    rank = replace(stage.rank(), storage=Full(stage.storage))
    with pytest.raises(OSError, match=r"rank-0000\.safetensors: no space left"):
        train(stage.job(updates=400, save_every=10_000, keep_every=3), rank)
    assert stage.commits == []
    # Long before the next checkpoint's turn.
    assert max(stage.losses(1)) < 400


def test_an_evaluation_that_there_is_nothing_for_is_refused(make_stage, tmp_path):
    stage = make_stage("nothing")
    job = replace(stage.job(evaluate_every=2), evaluation={})
    with pytest.raises(UserError, match="evaluate_every=2: the data set has no validation split"):
        run_training(job, stage_context(stage.storage, "stages/pretrain/x"))
