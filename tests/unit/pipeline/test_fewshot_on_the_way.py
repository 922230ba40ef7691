"""Few-shot evaluations during pretraining, in whole workflows: what they leave, and what kills do to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import UserError
from cluster.storage import Storage, open_storage
from pipeline import failures
from pipeline.config import Workflow, parse_workflow
from pipeline.driver import create
from pipeline.head import read_head
from pipeline.plan import plan
from pipeline.record import EventLog, Record, read_record
from pipeline.runner import Runner
from pipeline.status import StatusReader
from pipeline.verification import verify
from stages.context import read_output
from stages.metrics import read_points
from stages.pretrain import fewshot
from stages.training.engine import Engine
from tests.unit.pipeline.test_runner import Silent

UPDATES = 12
PLAIN = f"""
name: small
seed: 3
stages:
  ingest: {{source: {{kind: digits}}, samples_per_shard: 400, held_out_classes: 3}}
  pretrain:
    data: ingest
    model: {{width: 16, depth: 1, num_heads: 2, mlp_dim: 32, patch_size: 8, dropout: 0.1}}
    resolution: 16
    updates: {UPDATES}
    global_batch: 32
    lr: 0.002
    polyak_decay: 0.8
    input: {{streams: 2, window: 64, crop_area: [0.5, 1.0], loader_threads: 0}}
    workers: 0
    save_every: 100
    keep_last: 1
    log_every: 1
"""
EVALUATED = f"{PLAIN}    fewshot: {{every: 5, shots: [1, 5]}}\n"
NAMES = [f"fewshot/{name}/{shots}_shot" for name in ("all", "seen", "held_out") for shots in (1, 5)]


class Killed(BaseException):
    """In place of SIGKILL: nothing catches it."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(fewshot, "POLL_SECONDS", 0.01)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(f"file://{tmp_path}")


def run(storage: Storage, text: str = EVALUATED, *overrides: str, workflow_id: str = "") -> tuple[str, str]:
    """Run a workflow in this process, or go on with one; returns its id and state."""
    flow = parse_workflow(text, "small.yaml", overrides)
    own = workflow_id or create(storage, flow)
    return own, Runner(
        storage, own, flow, owner="test", ray=False, tracker=Silent(), lease_seconds=0.4, on_lost=lambda _: None
    ).run()


def folder_of(storage: Storage, workflow_id: str, stage: str = "pretrain") -> str:
    reader = StatusReader(storage, workflow_id, [])
    reader.update()
    folder = reader.status.stages[stage].folder
    assert folder is not None
    return folder


def record_of(storage: Storage, workflow_id: str, stage: str = "pretrain") -> Record:
    head = read_head(storage, folder_of(storage, workflow_id, stage))
    assert head is not None
    assert head[0].record is not None
    return read_record(storage, head[0].record)


def files(storage: Storage, folder: str) -> dict[int, list[str]]:
    """What evaluations have left, by attempt."""
    found: dict[int, list[str]] = {}
    for name in storage.list_folders(f"{folder}/attempts/"):
        for key in storage.list(f"{folder}/attempts/{name}/fewshot/"):
            if key.endswith(".jsonl"):
                found.setdefault(int(name), []).append(key.rpartition("/")[2].removesuffix(".jsonl").lstrip("0"))
    return found


def rows_of(record: Record, **wanted: Any) -> list[dict[str, Any]]:
    rows = record.tables["fewshot_on_the_way"]
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Storage, str, Record]:
    """With evaluations, and with a few-shot stage of the final model that draws alike."""
    found = open_storage(f"file://{tmp_path_factory.mktemp('undisturbed')}")
    beside = "  after: {kind: fewshot, data: ingest, from: pretrain, shots: [1, 5], draws: 3, baselines: []}\n"
    workflow_id, state = run(found, EVALUATED + beside)
    assert state == "done"
    return found, workflow_id, record_of(found, workflow_id)


def test_each_update_that_is_asked_for_and_the_last_one_are_evaluated(undisturbed):
    storage, workflow_id, record = undisturbed
    folder = folder_of(storage, workflow_id)
    assert files(storage, folder) == {1: ["5", "10", "12"]}
    points = read_points(storage, f"{folder}/attempts/1/fewshot/00000010.jsonl")
    assert [point.name for point in points] == NAMES
    assert {point.step for point in points} == {10}
    rows = record.tables["fewshot_on_the_way"]
    assert [row["update"] for row in rows] == [update for update in (5, 10, 12) for _ in NAMES]
    assert [row["accuracy"] for row in rows if row["update"] == 10] == [point.value for point in points]
    assert all(row["draws"] == 3 and row["standard_error"] >= 0 and not row["failed"] for row in rows)
    assert {name: record.metrics[name] for name in NAMES} == {
        f"fewshot/{row['class_set']}/{row['shots']}_shot": row["accuracy"] for row in rows if row["update"] == 12
    }
    assert len({row["accuracy"] for row in rows}) > 6


def test_they_are_those_of_a_few_shot_stage_of_the_same_model(undisturbed):
    storage, workflow_id, record = undisturbed
    after = record_of(storage, workflow_id, "after")
    for row in after.tables["fewshot"]:
        (own,) = rows_of(record, update=12, class_set=row["class_set"], shots=row["shots"])
        # Batches of other images round features otherwise: an image or two may lie on the edge.
        assert own["accuracy"] == pytest.approx(row["accuracy"], abs=2 / row["test_images"])
        assert (own["classes"], own["test_images"], own["draws"]) == (row["classes"], row["test_images"], 3)


def test_they_change_neither_the_stage_nor_the_model(undisturbed, storage):
    theirs, workflow_id, record = undisturbed
    plain, state = run(storage, PLAIN)
    assert state == "done"
    assert folder_of(storage, plain) == folder_of(theirs, workflow_id)
    own = record_of(storage, plain)
    assert own.output_digest == record.output_digest
    assert own.metrics == {name: value for name, value in record.metrics.items() if name not in NAMES} | {
        "peak_tflops": own.metrics["peak_tflops"]
    }
    # So either is the other one, done.
    again, state = run(storage, EVALUATED)
    assert state == "done"
    assert record_of(storage, again) == own
    assert files(storage, folder_of(storage, again)) == {}


def test_checkpoints_stay_until_they_are_evaluated_and_no_longer(undisturbed):
    storage, workflow_id, _ = undisturbed
    folder = folder_of(storage, workflow_id)
    head = read_head(storage, folder)
    assert head is not None
    assert [item.update for item in head[0].checkpoints] == [12]
    assert list(storage.list_folders(f"{folder}/checkpoints/")) == ["00000012-a1"]


def test_a_window_is_verified_without_them(undisturbed):
    storage, workflow_id, _ = undisturbed
    found = verify(storage, workflow_id, parse_workflow(EVALUATED, "small.yaml"), "pretrain", start=0)
    assert found.exact
    assert (found.start, found.end) == (0, UPDATES)


def test_another_data_set_to_evaluate_on_changes_nothing_either(undisturbed, storage):
    _, _, record = undisturbed
    few = "  few: {kind: subset, data: ingest, per_class: 8}\n"
    flow, state = run(storage, EVALUATED + few, "pretrain.fewshot_data=few")
    assert state == "done"
    own = record_of(storage, flow)
    assert (own.fingerprint, own.output_digest) == (record.fingerprint, record.output_digest)
    assert {row["class_set"] for row in own.tables["fewshot_on_the_way"]} == {"all"}
    assert own.inputs.keys() == {"data", "fewshot_data"}
    # Neither the one without nor the one with another one is to be made again.
    for text in (PLAIN, EVALUATED, EVALUATED + few.replace("8", "9")):
        overrides = ["pretrain.fewshot_data=few"] if "few:" in text else []
        planned = {stage.name: stage.action for stage in plan(storage, parse_workflow(text, "small.yaml", overrides))}
        assert planned["pretrain"] == "reuse"


def test_a_driver_that_is_killed_between_checkpoint_and_evaluation_loses_none(undisturbed, storage, monkeypatch):
    evaluate, asked = fewshot.evaluate_checkpoint, []

    def dying(task):
        asked.append(task.prefix)
        if len(asked) == 2:
            raise Killed
        evaluate(task)

    monkeypatch.setattr(fewshot, "evaluate_checkpoint", dying)
    workflow_id = create(storage, parse_workflow(EVALUATED, "small.yaml"))
    with pytest.raises(Killed):
        run(storage, EVALUATED, workflow_id=workflow_id)
    folder = folder_of(storage, workflow_id)
    assert files(storage, folder) == {1: ["5"]}
    assert run(storage, EVALUATED, workflow_id=workflow_id)[1] == "done"
    assert files(storage, folder) == {1: ["5", "10", "12"]}
    assert [Path(prefix).name for prefix in asked] == [f"000000{n}-a1" for n in ("05", "10", "10", "12")]
    same(record_of(storage, workflow_id), undisturbed)


def test_training_that_is_killed_keeps_what_is_not_evaluated(undisturbed, storage, monkeypatch):
    """Here nothing is evaluated beside training, and one checkpoint is kept: the next attempt finds all of them."""
    step, steps = Engine.step, []

    def failing(self, *arguments, **options):
        steps.append(1)
        if len(steps) in (7, 12):
            raise ConnectionError("cable pulled")
        return step(self, *arguments, **options)

    monkeypatch.setattr(Engine, "step", failing)
    text = EVALUATED.replace("every: 5", "every: 2")
    workflow_id, state = run(storage, text)
    assert state == "done"
    assert files(storage, folder_of(storage, workflow_id)) == {1: ["2", "4", "6"], 2: ["8", "10"], 3: ["12"]}
    record = record_of(storage, workflow_id)
    assert sorted({row["update"] for row in rows_of(record)}) == [2, 4, 6, 8, 10, 12]
    _, _, expected = undisturbed
    assert record.output_digest == expected.output_digest
    assert rows_of(record, update=10) == rows_of(expected, update=10)
    assert rows_of(record, update=12) == rows_of(expected, update=12)


def same(record: Record, undisturbed: tuple[Storage, str, Record]) -> None:
    _, _, expected = undisturbed
    assert record.output_digest == expected.output_digest
    assert record.tables == expected.tables


def damage(storage: Storage, prefix: str) -> None:
    key = f"{prefix}/rank-0000.safetensors"
    body = bytearray(storage.read(key))
    body[-1] ^= 1
    storage.write(key, bytes(body))


@pytest.mark.parametrize("how", ["damaged", "always away"])
def test_an_evaluation_that_fails_is_told_and_ends_nothing(undisturbed, storage, monkeypatch, capsys, how):
    evaluate, asked = fewshot.evaluate_checkpoint, []

    def failing(task):
        asked.append(Path(task.prefix).name)
        if task.prefix.endswith("00000010-a1"):
            if how == "always away":
                raise ConnectionError("the image server is away")
            damage(storage, task.prefix)
        evaluate(task)

    monkeypatch.setattr(fewshot, "evaluate_checkpoint", failing)
    workflow_id, state = run(storage)
    assert state == "done"
    # What trying again is of no use to is tried once.
    assert asked.count("00000010-a1") == (fewshot.TRIES if how == "always away" else 1)
    record = record_of(storage, workflow_id)
    (row,) = rows_of(record, update=10)
    reason = "the image server is away" if how == "always away" else "its manifest says"
    assert reason in row["failed"]
    assert row["accuracy"] is None
    assert f"few-shot evaluation of update 10 failed; it is left out: {row['failed']}" in capsys.readouterr().out
    _, _, expected = undisturbed
    assert rows_of(record, update=12) == rows_of(expected, update=12)
    assert [item.update for item in read_head(storage, folder_of(storage, workflow_id))[0].checkpoints] == [12]


def test_an_evaluation_that_fails_once_is_tried_again(undisturbed, storage, monkeypatch, capsys):
    evaluate, asked = fewshot.evaluate_checkpoint, []

    def failing(task):
        asked.append(task)
        if len(asked) == 2:
            raise ConnectionError("away for a moment")
        evaluate(task)

    monkeypatch.setattr(fewshot, "evaluate_checkpoint", failing)
    workflow_id, state = run(storage)
    assert state == "done"
    assert "update 10 failed; it is tried again: away for a moment" in capsys.readouterr().out
    same(record_of(storage, workflow_id), undisturbed)


def test_numbers_that_are_none_are_told(storage, monkeypatch):
    """As of a network that diverged: here its checkpoint is written with a weight that is no number."""
    import torch

    from stages.models.vit import VisionTransformer

    load = VisionTransformer.load_state_dict

    def spoilt(self, state, *arguments, **options):
        found = {name: torch.full_like(value, torch.nan) for name, value in state.items()}
        return load(self, found, *arguments, **options)

    monkeypatch.setattr(VisionTransformer, "load_state_dict", spoilt)
    workflow_id, state = run(storage)
    assert state == "done"
    rows = record_of(storage, workflow_id).tables["fewshot_on_the_way"]
    assert [row["update"] for row in rows] == [5, 10, 12]
    assert all("features of 'digits' are not finite for" in row["failed"] for row in rows)
    assert not set(NAMES) & record_of(storage, workflow_id).metrics.keys()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["ingest.test_fraction=0"], "has none of the splits test, held_out_test"),
        (["pretrain.fewshot.class_sets=[seen]", "pretrain.fewshot_data=few"], ""),
        (["ingest.test_fraction=0.0028", "ingest.held_out_classes=1"], "no test images of the held_out classes"),
    ],
)
def test_data_without_the_images_is_refused_before_anything_is_trained(storage, overrides, expected):
    text = EVALUATED + "  few: {kind: subset, data: ingest, per_class: 8}\n"
    if not expected:
        with pytest.raises(UserError, match="expected 'all' alone: 'few' is not the data set that is trained on"):
            parse_workflow(text, "small.yaml", overrides)
        return
    workflow_id, state = run(storage, EVALUATED, *overrides)
    assert state == "failed"
    (failed,) = [event for event in EventLog(storage, workflow_id).new_events() if event.type == "stage_failed"]
    assert expected in failed.data["message"]
    assert list(storage.list(f"{folder_of(storage, workflow_id)}/checkpoints/")) == []


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["pretrain.fewshot.every=0"], "stages.pretrain.fewshot.every: got 0, expected greater than or equal to 1"),
        (["pretrain.fewshot.shots=[1]"], "stages.pretrain.fewshot.every: this field is required"),
        (["pretrain.fewshot.evry=4"], "stages.pretrain.fewshot.evry: unknown field; did you mean 'every'?"),
        (["pretrain.fewshot=4"], "stages.pretrain.fewshot: got 4, expected a mapping of fields"),
        (
            ["pretrain.fewshot.every=4", "pretrain.fewshot.regularisation_by=global_rank"],
            "stages.pretrain.fewshot: regularisation_by=global_rank compares several data sets",
        ),
        (["pretrain.fewshot_data=ingest"], "fewshot_data=ingest is for evaluations on the way, and there are none"),
        (
            ["pretrain.fewshot.every=4", "pretrain.fewshot_data=pretrain"],
            "stage 'pretrain' makes a model, expected one that makes a dataset",
        ),
        (
            ["pretrain.fewshot.every=4", "pretrain.fewshot.class_sets=[held_out]", "ingest.held_out_classes=0"],
            "stages.pretrain.fewshot.class_sets: got held_out, expected 'all' alone: 'ingest' leaves no class out",
        ),
        (
            ["pretrain.fewshot.every=4", "pretrain.input.evaluation={method: resize_then_crop, size: 8}"],
            "size=8 is less than resolution=16",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(overrides, expected):
    with pytest.raises(UserError) as refused:
        parse_workflow(PLAIN, "small.yaml", overrides)
    assert expected in str(refused.value)


def test_it_is_asked_for_on_the_command_line_in_the_file_and_in_python():
    by_option = parse_workflow(PLAIN, "small.yaml", ["pretrain.fewshot.every=5", "pretrain.fewshot.shots=[1, 5]"])
    assert by_option == parse_workflow(EVALUATED, "small.yaml")
    written_out = parse_workflow(PLAIN, "small.yaml").to_yaml()
    again = parse_workflow(written_out, "x.yaml", ["pretrain.fewshot.every=5", "pretrain.fewshot.shots=[1, 5]"])
    assert again == by_option
    stages = by_option.stages
    settings = {"every": 5, "shots": (1, 5)}
    plain = parse_workflow(PLAIN, "small.yaml").stages["pretrain"].model_dump(by_alias=True)
    made = type(stages["pretrain"]).model_validate({**plain, "fewshot": settings})
    assert Workflow(name="small", seed=3, stages={**stages, "pretrain": made}) == by_option


def test_the_model_says_nothing_of_them(undisturbed):
    storage, _, record = undisturbed
    manifest = json.dumps(read_output(storage, record.output_prefix).manifest)
    assert "fewshot" not in manifest
