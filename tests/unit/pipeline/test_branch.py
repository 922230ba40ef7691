"""Branches off a training run: models of several lengths from one trunk."""

from __future__ import annotations

import pytest
from rich.console import Console

from cluster.errors import UserError
from cluster.storage import Storage, open_storage
from pipeline import stage_run
from pipeline.config import Workflow, parse_workflow
from pipeline.display import describe, plan_table
from pipeline.driver import create
from pipeline.head import read_head
from pipeline.plan import Question, plan
from pipeline.progress import Progress
from pipeline.runner import Runner
from pipeline.status import StatusReader
from pipeline.verification import verify
from stages.metrics import MetricReader
from stages.pretrain.config import PretrainConfig
from tests.unit.pipeline.test_runner import Silent

TEXT = """
name: lengths
seed: 3
stages:
  ingest: {source: {kind: digits}, samples_per_shard: 400}
  pretrain:
    data: ingest
    model: {width: 16, depth: 1, num_heads: 2, mlp_dim: 32, patch_size: 8, dropout: 0.1}
    resolution: 16
    updates: 12
    global_batch: 32
    lr: 0.002
    decay: constant
    warmup_updates: 2
    polyak_decay: 0.9
    input: {streams: 2, window: 64, crop_area: [0.5, 1.0], loader_threads: 0}
    workers: 0
    save_every: 100
    keep_every: 4
    log_every: 1
  short: {branch: {from: pretrain@4, cooldown: 4}}
  long: {branch: {from: pretrain@8, cooldown: 2}, end_lr: 0.001}
"""


def load(*overrides: str) -> Workflow:
    return parse_workflow(TEXT, "lengths.yaml", overrides)


def test_a_branch_has_its_trunks_fields_and_its_own():
    workflow = load()
    trunk, short, long = (workflow.stages[name] for name in ("pretrain", "short", "long"))
    assert isinstance(short, PretrainConfig)
    assert (short.trunk, short.branch_at, short.cooldown) == ("pretrain", 4, 4)
    own = {"trunk": None, "branch_at": None, "cooldown": None, "end_lr": 0.0}
    assert short.model_copy(update=own) == long.model_copy(update=own) == trunk
    assert isinstance(long, PretrainConfig)
    assert (long.total_updates(1000), long.trunk_updates(1000), long.end_lr) == (10, 12, 0.001)
    assert workflow.order() == ["ingest", "pretrain", "short", "long"]
    assert parse_workflow(workflow.to_yaml(), "again.yaml") == workflow


def test_lengths_may_be_swept():
    workflow = load("short.sweep.cooldown=[2, 4]")
    variants = [stage for name, stage in workflow.stages.items() if name.startswith("short-")]
    assert [(stage.branch_at, stage.cooldown) for stage in variants] == [(4, 2), (4, 4)]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("short.branch=pretrain@4", "stages.short.branch: got 'pretrain@4', expected {from: STAGE@UPDATE, cooldown:"),
        ("short.branch.from=pretrain", "stages.short.branch.from: got 'pretrain', expected a stage and an update"),
        ("short.branch.from=trunk@4", "stages.short.branch.from: got 'trunk', expected one of the stages: ingest"),
        ("short.branch.from=long@4", "stages.short.branch.from: 'long' is a branch itself"),
        ("short.branch.from=ingest@4", "stages.short"),
        ("short.branch.from=pretrain@16", "branch_at=16 is after the trunk's 12 updates"),
        ("short.branch.from=pretrain@6", "'pretrain' keeps no checkpoint of update 6, at which this one branches off"),
        ("short.branch.cooldown=0", "cooldown: got 0"),
        ("short.global_batch=64", "stages.short.global_batch: got 64, expected 32, that of its trunk 'pretrain'"),
        ("short.seed=4", "stages.short.seed: got 4, expected None, that of its trunk 'pretrain'"),
        ("pretrain.branch_at=4", "a branch needs all of trunk, branch_at, cooldown; got branch_at alone"),
    ],
)
def test_what_contradicts_itself_is_refused(override, expected):
    with pytest.raises(UserError) as refused:
        load(override)
    assert expected in str(refused.value)


def run(storage: Storage, workflow: Workflow) -> str:
    workflow_id = create(storage, workflow)
    runner = Runner(storage, workflow_id, workflow, owner="test", ray=False, tracker=Silent())
    assert runner.run() == "done"
    return workflow_id


def points(storage: Storage, workflow_id: str, stage: str, name: str) -> dict[int, float]:
    reader = StatusReader(storage, workflow_id, [stage])
    reader.update()
    found = reader.status.stages[stage]
    read = MetricReader(storage, f"{found.folder}/attempts/{found.attempt}").new_points()
    return {point.step: point.value for point in read if point.name == name}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Storage, str]:
    storage = open_storage(f"file://{tmp_path_factory.mktemp('lengths')}")
    return storage, run(storage, load())


def test_a_branch_goes_on_as_its_trunk_would_and_cools_down(ran):
    storage, workflow_id = ran
    trunk = points(storage, workflow_id, "pretrain", "train/loss")
    for name, start, end, end_lr in (("short", 4, 8, 0.0), ("long", 8, 10, 0.001)):
        losses = points(storage, workflow_id, name, "train/loss")
        assert list(losses) == list(range(start + 1, end + 1))
        # The same weights on the same samples at the same rate; what its first update makes shows in the next loss.
        assert [losses[start + 1], losses[start + 2]] == [trunk[start + 1], trunk[start + 2]]
        rates = points(storage, workflow_id, name, "train/lr")
        step = (0.002 - end_lr) / (end - start)
        assert list(rates.values()) == pytest.approx([0.002 - step * i for i in range(end - start)])
    short = points(storage, workflow_id, "short", "train/loss")
    assert short[8] != trunk[8]
    reader = StatusReader(storage, workflow_id, ["short"])
    (began,) = [e for e in reader.update() if e.type == "attempt_started" and e.stage == "short"]
    assert describe(began) == "short: attempt 1 started from update 4 of its trunk"
    shown = Progress(storage).measure(reader.status).stages["short"]
    assert (shown.began, shown.update, shown.updates, shown.updates_repeated) == ({1: 4}, 8, 8, 0)


def test_a_trunk_is_the_same_stage_with_branches_and_without(ran):
    storage, _ = ran
    stages = load().stages
    alone = Workflow(name="alone", seed=3, stages={name: stages[name] for name in ("ingest", "pretrain")})
    planned = plan(storage, alone)
    assert [stage.action for stage in planned] == ["reuse", "reuse"]
    planned = plan(storage, load("short.branch.cooldown=2"), Question(images=1000, classes=10))
    assert {stage.name: stage.action for stage in planned}["short"] != "reuse"
    assert {stage.name: stage.work.get("updates") for stage in planned}["short"] == 2


def test_a_branch_is_verified_from_its_trunks_checkpoint_on(ran):
    storage, workflow_id = ran
    found = verify(storage, workflow_id, load(), "short", start=4)
    assert (found.start, found.end, found.exact) == (4, 8, True)
    with pytest.raises(UserError, match=r"--from-update 0: expected a kept checkpoint's update: 4"):
        verify(storage, workflow_id, load(), "short", start=0)


def test_a_checkpoint_that_the_trunk_does_not_keep_any_more_is_told(ran, monkeypatch):
    storage, workflow_id = ran
    reader = StatusReader(storage, workflow_id, ["pretrain"])
    reader.update()
    folder = str(reader.status.stages["pretrain"].folder)
    found = read_head(storage, folder)
    assert found is not None
    gone = found[0].changed(checkpoints=[item for item in found[0].checkpoints if item.update != 4])
    storage.write(f"{folder}/HEAD.json", gone.body())
    workflow = load("short.branch.cooldown=3")
    runner = Runner(storage, create(storage, workflow), workflow, owner="test", ray=False, tracker=Silent())
    assert runner.run() == "failed"
    assert runner.failed == {
        "short": "'pretrain' has no checkpoint of update 4 any more (it keeps 8, 12): branch off at one of these, or "
        "`retry --from pretrain` makes it again"
    }
    planned = {stage.name: stage for stage in plan(storage, workflow)}
    assert planned["short"].action == "run"
    assert planned["short"].warnings[-1] == f"cannot start: {runner.failed['short']}"
    assert not [line for line in planned["long"].warnings if line.startswith("cannot start")]
    shown = Console(width=200)
    with shown.capture() as capture:
        shown.print(plan_table("lengths", planned.values()))
    assert "cannot start: 'pretrain' has no checkpoint of update 4 any more" in capture.get()
    # On a cluster it asks for no room, and makes no attempt.
    monkeypatch.setattr(stage_run, "wait_for_room", lambda *_: pytest.fail("it asked for room"))
    again = Runner(storage, create(storage, workflow), workflow, owner="test", ray=True, tracker=Silent())
    assert (again.run(), again.failed) == ("failed", runner.failed)
    head = read_head(storage, planned["short"].folder)
    assert head is not None
    assert (head[0].state, head[0].attempt) == ("failed", 0)
