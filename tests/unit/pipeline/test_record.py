import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.storage import open_storage
from pipeline import record as record_module
from pipeline.record import (
    AttemptNote,
    Record,
    builds,
    read_note,
    read_record,
    seconds_before,
    write_note,
    write_record,
)
from stages import metrics as metrics_module
from stages.metrics import MetricWriter

FOLDER = "stages/pretrain/x"
HOUR_MS = 3_600_000


@pytest.fixture
def storage(tmp_path):
    return open_storage(f"file://{tmp_path}")


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves: its time in milliseconds."""
    time_ms = [1_700_000_000_000]
    for module in (record_module, metrics_module):
        monkeypatch.setattr(module, "now_ms", lambda: time_ms[0])
    return time_ms


def attempt(storage, clock, number: int, hours: int, *, points: bool = True) -> None:
    """One that trains for so many hours and is killed."""
    prefix = f"{FOLDER}/attempts/{number}"
    write_note(storage, prefix, AttemptNote(placement={}, builds={}))
    writer = MetricWriter(storage, prefix, interval=3600)
    for hour in range(1, hours + 1):
        clock[0] += HOUR_MS
        if points:
            writer.log({"train/loss": 1.0, "train/lr": 0.1}, hour)
            writer.flush()
    writer.close()
    # What goes by until somebody resumes it is nobody's work.
    clock[0] += 10 * HOUR_MS


def finished(storage, clock, number: int) -> Record:
    """The record of an attempt that takes one hour."""
    return Record(
        kind="pretrain", fingerprint="x", attempt=number, identity={}, placement={}, inputs={}, output_prefix="",
        output_digest="", metrics={}, tables={}, builds={}, started_ms=clock[0], ended_ms=clock[0] + HOUR_MS,
        earlier_seconds=seconds_before(storage, FOLDER, number),
    )  # fmt: skip


def test_the_time_of_a_stage_is_that_of_all_its_attempts(storage, clock):
    attempt(storage, clock, 1, 12)
    attempt(storage, clock, 2, 87)
    key = write_record(storage, FOLDER, finished(storage, clock, 3))
    assert read_record(storage, key).seconds == 100 * 3600


def test_the_first_attempt_has_none_before_it(storage, clock):
    assert finished(storage, clock, 1).seconds == 3600


def test_attempts_that_left_no_trace_count_nothing(storage, clock):
    attempt(storage, clock, 1, 5, points=False)
    # Of an earlier version, without its start.
    storage.write(f"{FOLDER}/attempts/2/attempt.json", b'{"format":1,"placement":{},"builds":{}}')
    assert read_note(storage, f"{FOLDER}/attempts/2").started_ms is None
    attempt(storage, clock, 3, 2)
    # Attempt 4 was killed before its note.
    assert seconds_before(storage, FOLDER, 5) == 2 * 3600


def test_an_attempt_that_has_counted_those_before_it_is_believed(storage, clock):
    attempt(storage, clock, 1, 5)
    prefix = f"{FOLDER}/attempts/2"
    attempt(storage, clock, 2, 1)
    note = read_note(storage, prefix)
    assert note is not None
    storage.write(
        f"{prefix}/attempt.json", note.model_copy(update={"earlier_seconds": 60.0}).model_dump_json().encode()
    )
    attempt(storage, clock, 3, 2)
    assert seconds_before(storage, FOLDER, 4) == 60 + 3 * 3600


def test_a_record_of_an_earlier_version_counts_its_own_attempt(storage, clock):
    old = finished(storage, clock, 1).model_dump(mode="json")
    del old["earlier_seconds"]
    assert Record.model_validate(old).seconds == 3600


def test_the_code_is_the_same_wherever_its_packages_lie(tmp_path):
    """A job's cluster has each of them in a folder of its own."""
    here = Path(record_module.__file__).parents[1]
    for name in ("cluster", "pipeline", "stages"):
        shutil.copytree(here / name, tmp_path / name / name, ignore=shutil.ignore_patterns("__pycache__"))

    def elsewhere() -> str:
        path = os.pathsep.join(str(tmp_path / name) for name in ("cluster", "pipeline", "stages"))
        code = "from pipeline.record import builds; print(builds()['code'])"
        environment = {**os.environ, "PYTHONPATH": path}
        command = [sys.executable, "-c", code]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=tmp_path).stdout

    assert elsewhere().strip() == builds()["code"]
    with open(tmp_path / "stages" / "stages" / "config.py", "a") as file:
        file.write("# Changed.\n")
    assert elsewhere().strip() != builds()["code"]
