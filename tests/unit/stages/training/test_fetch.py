"""Bringing a checkpoint's files to a machine."""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from stages.temporary import PREFIX, _processes
from stages.training.loop import train
from stages.training.manifest import read_manifest


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def left(temporary: Path) -> set[str]:
    """Make what a killed process has left, and what is to stay; returns the names of the latter."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    killed, used = (f"{PREFIX}-{_processes()}-{pid}-x" for pid in (dead.pid, os.getppid()))
    # Of another machine that shares the folder.
    foreign = f"{PREFIX}-0123456789ab-{dead.pid}-x"
    for name in (killed, used, foreign):
        (temporary / name).mkdir()
        (temporary / name / "rank-0000.safetensors").write_bytes(b"0" * 100)
    return {used, foreign}


def folders(temporary: Path) -> set[str]:
    return {path.name for path in temporary.glob(f"{PREFIX}-*")}


def test_nothing_stays_of_a_checkpoint_that_a_run_or_a_killed_process_has_brought(make_stage, temporary):
    stage = make_stage("temporary")
    train(stage.job(updates=3), stage.rank())
    assert folders(temporary) == set()
    staying = left(temporary)
    # It goes on from the checkpoint, and has no weights to store.
    assert train(stage.job(updates=5), stage.rank(stop=lambda: True))["outcome"] == "stopped"
    assert folders(temporary) == staying


def test_nothing_stays_of_finished_weights_that_a_run_or_a_killed_process_has_stored(make_stage, temporary):
    stage = make_stage("finished")
    staying = left(temporary)
    train(stage.job(updates=3), stage.rank())
    assert folders(temporary) == staying


def test_a_checkpoint_of_another_stage_or_of_other_data_is_refused(make_stage):
    stage = make_stage("own")
    train(stage.job(updates=3), stage.rank())
    manifest = read_manifest(stage.storage, stage.checkpoint)
    assert manifest["identity"] == stage.folder.rpartition("/")[2]
    other = make_stage("other")
    outcome = train(other.job(updates=3), replace(other.rank(), checkpoint=stage.checkpoint))
    assert outcome["outcome"] == "damaged"
    assert outcome["reason"].startswith(f"its identity is {manifest['identity']}; this stage's is")
    job = stage.job(updates=3)
    changed = replace(job.dataset, manifest={**job.dataset.manifest, "note": "another"})
    outcome = train(replace(job, dataset=changed), stage.rank())
    assert outcome["reason"].startswith(f"its data is {job.dataset.digest}; this stage's is {changed.digest}")
