"""What a report gathers is what storage has, of workflows that are done, under way, killed and gone wrong."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict
from pathlib import Path

import pytest

from cluster.errors import UserError
from cluster.storage import open_storage
from pipeline.config import Workflow
from pipeline.driver import create
from pipeline.head import read_head
from pipeline.provenance import note_origin, read_origin
from pipeline.record import read_record
from pipeline.report.document import Report, StageReport
from pipeline.report.gather import gather
from pipeline.runner import Runner
from pipeline.status import StatusReader
from stages.context import read_output
from stages.metrics import MetricReader
from tests.unit.pipeline.finished import copied, run_to_its_end
from tests.unit.pipeline.report.conftest import BEGAN_MS, FOLDER, Told
from tests.unit.pipeline.test_runner import Silent
from tests.unit.pipeline.toys import Source, Upper


def stages(report: Report) -> dict[str, StageReport]:
    return {stage.name: stage for stage in report.stages}


def record_of(storage, workflow_id: str, name: str):
    reader = StatusReader(storage, workflow_id, [])
    reader.update()
    head = read_head(storage, reader.status.stages[name].folder)
    assert head is not None
    return read_record(storage, head[0].record)


def test_figures_are_those_of_the_records_and_outputs(finished):
    storage, workflow_id = finished
    report = gather(storage, workflow_id)
    assert (report.state, report.done, report.warnings, report.losses) == ("done", True, [], [])
    for name, stage in stages(report).items():
        record = record_of(storage, workflow_id, name)
        assert stage.metrics == record.metrics
        assert stage.seconds == pytest.approx(record.seconds)
        assert stage.digest == record.output_digest
        assert stage.builds == record.builds
        assert (stage.outcome, len(stage.spans), stage.spans[0].outcome) == ("done", 1, "done")
    pretrain = record_of(storage, workflow_id, "pretrain")
    fewshot = record_of(storage, workflow_id, "fewshot").tables["fewshot"]
    (expected,) = (
        row["accuracy"]
        for row in fewshot
        if (row["class_set"], row["features"], row["shots"]) == ("held_out", "features", 5)
    )
    found = {figure.name: figure.value for figure in report.figures}
    assert found["fewshot/held_out/5_shot"] == expected
    assert found["pretrain/test/accuracy"] == pretrain.metrics["test/accuracy"]
    assert found["images_seen"] == 12 * 32 == read_output(storage, pretrain.output_prefix).meta["images_seen"]
    assert found["seconds"] == pytest.approx(sum(stage.spans[0].seconds for stage in report.stages))
    assert stages(report)["fewshot"].inputs == ["ingest", "pretrain"]
    assert report.workflow == storage.read(f"workflows/{workflow_id}/workflow.yaml").decode()


def test_where_it_was_submitted_from_is_what_was_kept(finished):
    storage, workflow_id = finished
    note_origin(storage, workflow_id)
    assert gather(storage, workflow_id).origin == read_origin(storage, workflow_id) != {}


def test_operations_are_those_that_plan_foretells(finished):
    from pipeline.driver import read_workflow
    from pipeline.plan import plan

    storage, workflow_id = finished
    planned = {stage.name: stage for stage in plan(storage, read_workflow(storage, workflow_id))}
    assert stages(gather(storage, workflow_id))["pretrain"].exaflops == planned["pretrain"].work["exaflops"]


def test_curves_have_every_point_and_pictures_every_byte(finished):
    storage, workflow_id = finished
    found = stages(gather(storage, workflow_id))
    folder = found["pretrain"].folder
    stored = list(MetricReader(storage, f"{folder}/attempts/1").new_points())
    curves = {curve.name: curve for curve in found["pretrain"].curves}
    assert set(curves) == {"loss", "accuracy", "lr", "gradient_norm", "images_per_s", "data_wait"}
    for curve in curves.values():
        for series in curve.series:
            expected = [[p.step, p.value, p.value, p.value] for p in stored if p.name == series.metric]
            assert series.points == sorted(expected)
    assert [series.metric for series in curves["loss"].series] == ["train/loss", "validation/loss"]
    assert [point[0] for point in curves["loss"].series[1].points] == [4, 8]
    pictures = found["analyze"].pictures
    assert pictures[0].name == "rollout.png"
    assert pictures[0].caption == "4 images: the class token's row"
    prefix = record_of(storage, workflow_id, "analyze").output_prefix
    for picture in pictures:
        assert base64.b64decode(picture.data) == storage.read(f"{prefix}/{picture.name}")
        assert picture.width == 900


def test_a_report_is_plain_json(finished):
    report = gather(*finished, price=2.0)
    again = json.loads(json.dumps(asdict(report)))
    assert again["stages"][1]["metrics"] == report.stages[1].metrics


def test_money_is_the_price_of_the_hours_of_gpus(killed):
    storage, workflow_id, _ = killed
    for attempt, workers in ((1, 4), (2, 2)):
        note = {"format": 1, "placement": {"workers": workers, "gpus_per_worker": 1}, "builds": {}}
        storage.write(f"{FOLDER}/attempts/{attempt}/attempt.json", json.dumps(note).encode())
    events = Told(storage, workflow_id)
    events.tell(150, "gang", "pretrain", workers=3, room=3, most=4, working=3)
    events.tell(224, "attempt_ended", "pretrain", attempt=2, outcome="failed", message="cable pulled")
    cost = gather(storage, workflow_id, price=36.0).cost
    # 114 seconds of four GPUs, then 100 of the three that the gang came to have.
    assert cost.gpu_hours == pytest.approx((114 * 4 + 100 * 3) / 3600)
    assert cost.money == pytest.approx((114 * 4 + 100 * 3) / 100)
    assert cost.seconds == 214
    assert gather(storage, workflow_id).cost.money is None


def test_what_a_killed_attempt_lost_is_counted_in_updates_and_time(killed):
    storage, workflow_id, _ = killed
    report = gather(storage, workflow_id)
    (loss,) = report.losses
    assert (loss.attempt, loss.end, loss.back_to, loss.repeated) == (1, 57, 50, 7)
    assert (loss.seconds, loss.pause) == (14.0, 10.0)
    first, second = stages(report)["pretrain"].spans
    assert (first.outcome, first.started_ms, first.ended_ms) == ("lost", BEGAN_MS, BEGAN_MS + 114_000)
    assert first.lost_seconds == 14.0
    assert (second.outcome, second.began_at) == ("running", 50)
    assert report.state == "running"
    assert report.ended_ms is None
    assert stages(report)["pretrain"].update == 60
    assert stages(report)["pretrain"].images_seen == 60 * 32
    assert stages(report)["fewshot"].outcome == "pending"
    assert any("It is under way" in line for line in report.warnings)
    assert any("not bit-exact: torch: 2.12.0 → 2.13.0" in line for line in report.warnings)


def test_a_curve_tells_what_counts_from_what_was_made_again(killed):
    storage, workflow_id, _ = killed
    (curve,) = stages(gather(storage, workflow_id))["pretrain"].curves
    kept, again = curve.series
    # Those of attempt 2 from 51 on, which is one greater.
    assert [point[0] for point in kept.points] == list(range(1, 61))
    assert kept.points[50][1] == pytest.approx(2.0 / 51 + 2)
    assert again.attempt == 1
    assert [point[0] for point in again.points] == [50, *range(51, 58)]
    assert again.points[1][1] == pytest.approx(2.0 / 51 + 1)
    assert [(mark.end, mark.back_to) for mark in curve.marks] == [(57, 50)]


def test_a_driver_that_is_gone_leaves_a_report_that_says_so(killed):
    storage, workflow_id, own = killed
    document, tag = own._read()
    old = document.model_copy(update={"renewed_ms": document.renewed_ms - 3 * 3_600_000})
    storage.compare_and_swap(f"workflows/{workflow_id}/HEAD.json", old.body(), tag)
    report = gather(storage, workflow_id)
    assert report.state == "silent"
    assert f"`patchline resume {workflow_id}`" in report.warnings[0]
    last = stages(report)["pretrain"].spans[-1]
    # Until its last sign of life, not until now.
    assert (last.outcome, last.ended_ms) == ("lost", BEGAN_MS + 140_000)


def test_a_failed_workflow_says_why_and_what_was_not_run(tmp_path):
    flow = Workflow(name="toy", stages={"first": Source(), "second": Upper(text="first", mistake="lr=-1"),
                                        "third": Upper(text="second")})  # fmt: skip
    storage = open_storage(f"file://{tmp_path}")
    workflow_id = create(storage, flow)
    assert Runner(storage, workflow_id, flow, owner="test", ray=False, tracker=Silent()).run() == "failed"
    report = gather(storage, workflow_id)
    assert report.state == "failed"
    assert [stage.outcome for stage in report.stages] == ["done", "failed", "skipped"]
    assert [span.outcome for stage in report.stages for span in stage.spans] == ["done", "failed"]
    for words in ("It is not done: it has failed", "second: failed: lr=-1", "third: skipped: needs second"):
        assert any(words in line for line in report.warnings)


def test_what_is_reused_costs_nothing_and_names_who_made_it(tmp_path):
    flow = Workflow(name="toy", stages={"first": Source()})
    folder, first = run_to_its_end(tmp_path, flow)
    storage = open_storage(f"file://{folder}")
    # Drivers' owners begin with the workflow.
    document, tag = read_head(storage, stages(gather(storage, first))["first"].folder)
    owned = document.model_copy(update={"owner": f"{first}/mill/1/ab"})
    storage.compare_and_swap(f"{stages(gather(storage, first))['first'].folder}/HEAD.json", owned.body(), tag)
    _, second = run_to_its_end(tmp_path, flow)
    report = gather(storage, second)
    (stage,) = report.stages
    assert (stage.outcome, stage.made_by, stage.spans) == ("reused", first, [])
    assert (report.cost.seconds, report.cost.saved_seconds) == (0, stage.seconds)
    again = gather(storage, first)
    assert (again.stages[0].outcome, again.stages[0].made_by) == ("done", None)


def test_a_resumed_workflow_has_not_reused_what_it_made_itself(tmp_path):
    storage, flow = open_storage(f"file://{tmp_path}"), Workflow(name="toy", stages={"first": Source()})
    _, workflow_id = run_to_its_end(tmp_path, flow)
    assert Runner(storage, workflow_id, flow, owner="test", ray=False, tracker=Silent()).run() == "done"
    report = gather(storage, workflow_id)
    assert (report.stages[0].outcome, len(report.drivers_ms), report.cost.saved_seconds) == ("done", 2, 0)


def test_pictures_that_are_gone_or_none_are_told_and_not_shown(finished, tmp_path):
    storage, workflow_id = finished
    damaged = copied(Path(storage.url.removeprefix("file://")), tmp_path / "copy")
    prefix = record_of(storage, workflow_id, "analyze").output_prefix
    damaged.delete(f"{prefix}/filters.png")
    damaged.write(f"{prefix}/rollout.png", b"<svg onload=alert(1)>")
    report = gather(damaged, workflow_id)
    shown = {picture.name: picture.data is not None for picture in stages(report)["analyze"].pictures}
    assert (shown["filters.png"], shown["rollout.png"], shown["positions.png"]) == (False, False, True)
    assert "analyze: not shown: rollout.png (it is no PNG), filters.png (it is gone)" in report.warnings


def test_a_stage_whose_record_is_gone_is_told_from_events(finished, tmp_path):
    storage, workflow_id = finished
    damaged = copied(Path(storage.url.removeprefix("file://")), tmp_path / "copy")
    folder = stages(gather(storage, workflow_id))["fewshot"].folder
    damaged.delete(f"{folder}/record-1.json")
    report = gather(damaged, workflow_id)
    assert any(line.startswith("fewshot: its record is gone") for line in report.warnings)
    assert stages(report)["fewshot"].metrics == stages(gather(storage, workflow_id))["fewshot"].metrics


def test_an_output_that_is_gone_is_told(finished, tmp_path):
    storage, workflow_id = finished
    damaged = copied(Path(storage.url.removeprefix("file://")), tmp_path / "copy")
    damaged.delete(f"{record_of(storage, workflow_id, 'analyze').output_prefix}/MANIFEST.json")
    report = gather(damaged, workflow_id)
    assert "analyze: its output is gone, or is not the one that its record names" in report.warnings
    assert (stages(report)["analyze"].output, stages(report)["analyze"].pictures) == (None, [])
    assert stages(report)["analyze"].tables


def test_a_workflow_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="no workflow 'nope'"):
        gather(open_storage(f"file://{tmp_path}"), "nope")
