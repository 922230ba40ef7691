"""`patchline demo` as a newcomer meets it, again, and at another resolution: the whole main job."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import mlflow
import pytest

from pipeline.settings import resolve
from tests.integration.flows import tracked

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]
STAGES = ("ingest", "pretrain", "finetune", "fewshot")


def patchline(*words: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *words],
        env={**os.environ, "COLUMNS": "160"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.fixture(scope="module")
def first(stack: Any) -> Any:
    """What the first demo prints, and its status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATCHLINE_HOME", stack.home)
        shown = patchline("demo")
        return shown, json.loads(patchline("status", "--json"))


def rows(shown: str) -> dict[str, list[str]]:
    """The closing table: outcome, time and figures by stage."""
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if line.startswith("│")]
    return {line[0]: line[1:] for line in cells if line[0] in STAGES and len(line) == 4}


def test_it_ends_with_a_table_of_every_stage_the_addresses_and_what_to_try(first, stack):
    shown, _ = first
    table = rows(shown)
    assert list(table) == list(STAGES)
    assert {outcome for outcome, _, _ in table.values()} == {"✓ done"}
    assert "images 1,797" in table["ingest"][2]
    assert "test" in table["pretrain"][2]
    for line in ("pretrain: done in", "workflow done", "three things to try next"):
        assert line in shown
    assert stack.mlflow_url in shown
    assert stack.jobs_address in shown


def test_its_features_beat_the_untrained_network_by_two_standard_errors(first):
    _, status = first
    compared = [row for row in status["tables"]["fewshot"]["comparison"] if row["baseline"] == "untrained"]
    assert {(row["class_set"], row["shots"]) for row in compared} == {
        (classes, shots) for classes in ("all", "seen", "held_out") for shots in (1, 5, 10, 25)
    }
    assert [row for row in compared if not row["standard_errors"] > 2] == []


def test_its_features_beat_raw_pixels_on_the_classes_that_it_has_seen(first):
    _, status = first
    compared = [
        row
        for row in status["tables"]["fewshot"]["comparison"]
        if (row["class_set"], row["baseline"]) == ("seen", "pixels")
    ]
    assert [row["shots"] for row in compared] == [1, 5, 10, 25]
    assert [row for row in compared if not row["difference"] > 0] == []


def test_mlflow_has_a_run_for_every_stage_with_the_few_shot_table(first, stack_environment):
    runs = tracked(resolve(), first[1]["id"])
    assert {key for key in runs if "/" not in key} == {"workflow", *STAGES}
    assert {runs[name].info.status for name in STAGES} == {"FINISHED"}
    assert runs["fewshot"].data.metrics["features/held_out/5_shot"] > 0.5
    assert runs["workflow"].data.metrics["fewshot/all/25_shot"] > 0.5
    client = mlflow.MlflowClient(stack_environment.mlflow_url)
    files = {item.path for item in client.list_artifacts(runs["fewshot"].info.run_id)}
    assert {"fewshot.json", "comparison.json", "fewshot.png"} <= files


def test_again_it_reuses_every_stage(first, stack_environment):
    table = rows(patchline("demo"))
    assert {name: outcome for name, (outcome, _, _) in table.items()} == dict.fromkeys(STAGES, "↺ reused")
    assert [time for _, time, _ in table.values()] == [time for _, time, _ in rows(first[0]).values()]


def test_another_resolution_runs_the_fine_tuning_alone(first, stack_environment):
    other = ("-o", "finetune.resolution=32", "-o", "finetune.epochs=1")
    planned = json.loads(patchline("plan", "digits", *other, "--json"))
    actions = {stage["name"]: stage["action"] for stage in planned}
    assert actions == {"ingest": "reuse", "pretrain": "reuse", "finetune": "run", "fewshot": "reuse"}
    (why,) = (stage["why"] for stage in planned if stage["name"] == "finetune")
    assert "resolution: 24 → 32" in why
    outcomes = {name: outcome for name, (outcome, _, _) in rows(patchline("demo", *other)).items()}
    assert outcomes == {"ingest": "↺ reused", "pretrain": "↺ reused", "finetune": "✓ done", "fewshot": "↺ reused"}


def test_a_warm_up_that_is_too_long_for_the_data_is_told_before_anything_runs(first, stack_environment):
    overrides = ("pretrain.epochs=1", "pretrain.warmup_fraction=0", "pretrain.warmup_updates=30")
    answer = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "plan", "digits", *(word for o in overrides for word in ("-o", o))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 2
    assert "stages.pretrain: warmup_updates=30 is not below the run's" in answer.stderr
