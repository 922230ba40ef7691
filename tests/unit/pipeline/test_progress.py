"""How far a training is, what it has lost, and its logs by attempt and rank: read from storage, with no cluster."""

from __future__ import annotations

import json
import sys
import threading

import pytest

from cluster.errors import UserError
from cluster.storage import Storage
from pipeline import cli
from pipeline.commands.base import console
from pipeline.config import load_workflow
from pipeline.display import figures
from pipeline.driver import create
from pipeline.head import Head, commit_checkpoint
from pipeline.progress import Progress
from pipeline.record import EventLog, mark
from pipeline.settings import Settings
from pipeline.stage_logs import Wanted, workflow_logs
from pipeline.status import StatusReader, WorkflowStatus
from stages.metrics import Point, points_body

FOLDER = "stages/pretrain/0123456789abcdef0123"
BEGAN_MS = 1_700_000_000_000


@pytest.fixture
def settings(tmp_path, monkeypatch) -> Settings:
    monkeypatch.setenv("PATCHLINE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATCHLINE_ROOT", f"file://{tmp_path}/root")
    monkeypatch.setattr(console, "width", 200)
    return Settings(root=f"file://{tmp_path}/root", mlflow="")


@pytest.fixture
def storage(settings) -> Storage:
    return settings.storage()


def points(storage: Storage, attempt: int, first: int, last: int, *, file: int = 0) -> None:
    """The loss and speed of updates `first` to `last`, two seconds each."""
    lines = [
        {"format": 1, "name": name, "value": value, "step": step, "time_ms": BEGAN_MS + 2000 * step}
        for step in range(first, last + 1)
        for name, value in (("train/loss", 2.0 / step), ("train/images_per_s", 100.0 + attempt))
    ]
    body = "".join(json.dumps(line) + "\n" for line in lines)
    storage.write(f"{FOLDER}/attempts/{attempt}/metrics/{file:06d}.jsonl", body.encode())


def log(storage: Storage, attempt: int, rank: int, text: str) -> None:
    storage.write(f"{FOLDER}/attempts/{attempt}/logs/rank-{rank:04d}/000000.log", text.encode())


@pytest.fixture
def trained(storage) -> tuple[str, Head]:
    """A workflow whose training was killed at update 57 after a checkpoint at 50, and is at 53 again; its id."""
    workflow_id = create(storage, load_workflow("digits"))
    own = Head.acquire(storage, f"workflows/{workflow_id}", "driver", ttl=3600)
    head = Head.acquire(storage, FOLDER, "driver", ttl=3600)
    assert own is not None
    assert head is not None
    mark(storage, workflow_id, "running", 1)
    events = EventLog(storage, workflow_id)
    events.append("workflow_started", owner="driver", driver=None)
    events.append("stage_started", "pretrain", folder=FOLDER)
    head.new_attempt()
    events.append("attempt_started", "pretrain", attempt=1, folder=FOLDER, checkpoint=None, differs=[])
    events.append("stage_length", "pretrain", updates=100)
    points(storage, 1, 1, 30)
    points(storage, 1, 31, 57, file=1)
    log(storage, 1, 0, "first attempt, rank 0\n")
    log(storage, 1, 1, "first attempt, rank 1\n")
    prefix = f"{FOLDER}/checkpoints/00000050-a1"
    commit_checkpoint(storage, FOLDER, head.epoch, 1, prefix, 50, lambda updates: updates)
    head.new_attempt()
    checkpoint = {"prefix": prefix, "update": 50}
    events.append("attempt_started", "pretrain", attempt=2, folder=FOLDER, checkpoint=checkpoint, differs=[])
    points(storage, 2, 51, 53)
    log(storage, 2, 0, "second attempt, rank 0\n")
    log(storage, 2, 1, "second attempt, rank 1\n")
    return workflow_id, own


def measured(storage: Storage, workflow_id: str) -> WorkflowStatus:
    reader = StatusReader(storage, workflow_id, ["pretrain"])
    reader.update()
    return Progress(storage).measure(reader.status)


def patchline(monkeypatch, capsys, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["patchline", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    captured = capsys.readouterr()
    return int(end.value.code or 0), captured.out, captured.err


def test_a_running_stage_tells_how_far_it_is_how_fast_and_what_was_lost(storage, trained):
    stage = measured(storage, trained[0]).stages["pretrain"]
    assert (stage.attempt, stage.update, stage.updates) == (2, 53, 100)
    assert stage.images_per_s == 102.0
    # 47 updates at two seconds each.
    assert stage.seconds_left == pytest.approx(94)
    # 51 to 57 were made twice, or will be.
    assert stage.updates_repeated == 7
    assert figures(stage) == "53/100 updates  102 images/s  1 min 34 s left"


@pytest.mark.parametrize(("share", "told"), [(0.34, "  waits for images 34% of the time"), (0.04, "")])
def test_a_stage_that_waits_for_its_images_says_so(storage, trained, share, told):
    body = points_body([Point(name="train/data_wait", value=share, step=53, time_ms=BEGAN_MS + 2000 * 53)])
    storage.write(f"{FOLDER}/attempts/2/metrics/000001.jsonl", body)
    stage = measured(storage, trained[0]).stages["pretrain"]
    assert stage.data_wait == share
    assert figures(stage) == f"53/100 updates  102 images/s{told}  1 min 34 s left"


def test_a_follower_sees_new_points_and_a_new_attempt(storage, trained):
    workflow_id, _ = trained
    reader, progress = StatusReader(storage, workflow_id, []), Progress(storage)
    reader.update()
    assert progress.measure(reader.status).stages["pretrain"].update == 53
    points(storage, 2, 54, 60, file=1)
    assert progress.measure(reader.status).stages["pretrain"].update == 60
    # Its machine is lost, without another checkpoint.
    events = EventLog(storage, workflow_id)
    checkpoint = {"prefix": f"{FOLDER}/checkpoints/00000050-a1", "update": 50}
    events.append("attempt_started", "pretrain", attempt=3, folder=FOLDER, checkpoint=checkpoint, differs=[])
    reader.update()
    stage = progress.measure(reader.status).stages["pretrain"]
    assert (stage.update, stage.updates_repeated, stage.images_per_s) == (50, 17, None)


def test_work_lost_counts_attempts_that_another_workflow_made_too(storage, trained):
    """A workflow that took the stage over has no events of the first attempt; HEAD and the points have it."""
    other = EventLog(storage, "other")
    checkpoint = {"prefix": f"{FOLDER}/checkpoints/00000050-a1", "update": 50}
    other.append("attempt_started", "pretrain", attempt=2, folder=FOLDER, checkpoint=checkpoint, differs=[])
    other.append("stage_length", "pretrain", updates=100)
    assert measured(storage, "other").stages["pretrain"].updates_repeated == 7


def test_status_has_the_same_fields_as_json(storage, trained, monkeypatch, capsys):
    code, out, _ = patchline(monkeypatch, capsys, "status", "--json")
    stage = json.loads(out)["stages"]["pretrain"]
    assert code == 0
    assert {name: stage[name] for name in ("attempt", "update", "updates", "images_per_s", "updates_repeated")} == {
        "attempt": 2, "update": 53, "updates": 100, "images_per_s": 102.0, "updates_repeated": 7,
    }  # fmt: skip
    assert stage["seconds_left"] == pytest.approx(94)
    _, table, _ = patchline(monkeypatch, capsys, "status")
    assert "53/100 updates  102 images/s  1 min 34 s left" in table
    assert "attempt 2  7 updates repeated" in table


@pytest.mark.parametrize("as_json", [False, True])
def test_status_is_followed_to_the_end(storage, trained, monkeypatch, capsys, as_json):
    workflow_id, own = trained

    def finish() -> None:
        events = EventLog(storage, workflow_id)
        events.append("stage_done", "pretrain", metrics={"updates": 100.0}, seconds=200.0)
        own.release("done")
        events.append("workflow_ended", state="done", driver=None)

    timer = threading.Timer(5.0, finish)
    timer.start()
    code, out, _ = patchline(monkeypatch, capsys, "status", "-f", *(["--json"] if as_json else []))
    timer.join()
    assert code == 0
    if not as_json:
        assert "pretrain: done in" in out
        return
    told = [json.loads(line) for line in out.splitlines()]
    # How many lines there are before the last one is a matter of time.
    assert told[-1]["state"] == "done"
    assert told[-1]["stages"]["pretrain"]["update"] == 100


def test_following_a_silent_workflow_ends_with_what_to_do(storage, trained, monkeypatch, capsys):
    workflow_id, own = trained
    # Whatever the clocks of two machines say: what does not change for twice its time to live is silent.
    document, tag = own._read()
    quick = document.model_copy(update={"ttl_seconds": 0.5, "renewed_ms": document.renewed_ms + 3_600_000})
    storage.compare_and_swap(f"workflows/{workflow_id}/HEAD.json", quick.body(), tag)
    code, out, _ = patchline(monkeypatch, capsys, "status", "-f")
    assert code == 1
    assert "its driver has been silent for" in " ".join(out.split())


# Logs


def text(storage: Storage, workflow_id: str, **wanted) -> str:
    return "".join(workflow_logs(storage, workflow_id, Wanted(**wanted), follow=False))


def test_logs_are_chosen_by_stage_attempt_and_rank(storage, trained):
    workflow_id, _ = trained
    assert text(storage, workflow_id, stage="pretrain") == "second attempt, rank 0\nsecond attempt, rank 1\n"
    assert text(storage, workflow_id, stage="pretrain", rank=1) == "second attempt, rank 1\n"
    assert text(storage, workflow_id, stage="pretrain", attempt=1, rank=0) == "first attempt, rank 0\n"


def test_a_log_that_there_is_not_is_told_with_those_that_there_are(storage, trained):
    workflow_id, _ = trained
    for wanted, words in (
        ({"stage": "pretrain", "attempt": 3}, "--attempt 3: 'pretrain' has the attempts 1, 2"),
        ({"stage": "pretrain", "rank": 7}, "--rank 7: 'pretrain' has no log of it; ranks with logs: 0, 1"),
        ({"stage": "finetune"}, "stage 'finetune' has no log in .*; stages that ran: pretrain"),
        ({"rank": 0}, "--rank 0 says nothing without --stage"),
    ):
        with pytest.raises(UserError, match=words):
            text(storage, workflow_id, **wanted)


def test_a_reused_stage_shows_the_logs_of_whoever_made_it(storage, trained):
    EventLog(storage, "other").append("stage_reused", "pretrain", folder=FOLDER, metrics={}, seconds=1.0)
    assert text(storage, "other", stage="pretrain", rank=0) == "second attempt, rank 0\n"


def test_logs_as_json_name_the_process_of_each_line(storage, trained, monkeypatch, capsys):
    _, out, _ = patchline(monkeypatch, capsys, "logs", "--stage", "pretrain", "--attempt", "1", "--json")
    assert [json.loads(line) for line in out.splitlines()] == [
        {"process": f"{FOLDER}/attempts/1/logs/rank-000{rank}", "line": f"first attempt, rank {rank}"}
        for rank in (0, 1)
    ]


def test_a_list_is_filtered_on_the_command_line(storage, trained, monkeypatch, capsys):
    workflow_id, _ = trained
    mark(storage, "toy-20200101-000000-aaaa", "failed")
    for words, expected in (
        (("--state", "failed"), {"toy-20200101-000000-aaaa": "failed"}),
        (("--name", "digits"), {workflow_id: "running"}),
        (("--since", "2d"), {workflow_id: "running"}),
        (("--since", "2d", "--state", "failed"), {}),
        (("--state", "failed", "--state", "running"), {"toy-20200101-000000-aaaa": "failed", workflow_id: "running"}),
    ):
        assert json.loads(patchline(monkeypatch, capsys, "list", "--json", *words)[1]) == expected
    for words, problem in (
        (("--since", "yesterday"), "--since 'yesterday': expected a number and one of s, m, h, d, w"),
        (("--state", "broken"), "--state broken: expected one of submitted, running, silent"),
    ):
        code, _, error = patchline(monkeypatch, capsys, "list", *words)
        assert (code, problem in error) == (2, True)
