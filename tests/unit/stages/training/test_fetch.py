"""Bringing a checkpoint's files to a machine."""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from stages.training import fetch
from stages.training.loop import train
from stages.training.manifest import read_manifest


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_nothing_stays_of_what_a_run_or_a_killed_process_has_brought(make_stage, temporary):
    dead = subprocess.Popen(["true"])
    dead.wait()
    own = fetch._processes()
    names = {name: f"{fetch.PREFIX}-{own}-{pid}-x" for name, pid in (("left", dead.pid), ("used", os.getppid()))}
    for name in names.values():
        (temporary / name).mkdir()
        (temporary / name / "rank-0000.safetensors").write_bytes(b"0" * 100)
    # Of another machine that shares the folder.
    foreign = temporary / f"{fetch.PREFIX}-0123456789ab-{dead.pid}-x"
    foreign.mkdir()
    stage = make_stage("temporary")
    train(stage.job(updates=3), stage.rank())
    train(stage.job(updates=5), stage.rank())
    assert {path.name for path in temporary.glob(f"{fetch.PREFIX}-*")} == {names["used"], foreign.name}


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
