"""The commands that lead back to a workflow name what would not be taken without being named."""

from __future__ import annotations

import shlex
import sys

import pytest

from pipeline.commands.leaving import command
from pipeline.settings import Settings, resolve

ROOT, MLFLOW, ADDRESS = "s3://bucket/vit", "http://mlflow:5000", "http://head:8265"


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch, tmp_path):
    monkeypatch.setenv("PATCHLINE_HOME", str(tmp_path / "my home"))


def test_of_the_usual_places_nothing_is_said():
    assert command("status -f", "a-1", resolve()) == "patchline status -f a-1"
    assert command("resume", "a-1", resolve(), "--foreground") == "patchline resume a-1 --foreground"


def test_of_others_all_that_the_command_takes_is_said(monkeypatch):
    settings = resolve(root=ROOT, mlflow=MLFLOW, address=ADDRESS)
    assert command("cancel", "a-1", settings) == f"patchline cancel a-1 --root {ROOT}"
    places = f"--root {ROOT} --mlflow {MLFLOW}"
    assert command("resume", "a-1", settings) == f"patchline resume a-1 {places} --address {ADDRESS}"
    assert command("resume", "a-1", settings, "--foreground") == f"patchline resume a-1 --foreground {places}"
    monkeypatch.setenv("PATCHLINE_ROOT", ROOT)
    assert command("resume", "a-1", settings) == f"patchline resume a-1 --mlflow {MLFLOW} --address {ADDRESS}"


def test_it_can_be_typed_as_it_stands():
    settings = Settings(root="file:///tmp/my results", mlflow="")
    assert command("logs -f", "a-1", settings) == "patchline logs -f a-1 --root 'file:///tmp/my results'"


def test_a_program_with_a_blank_in_its_path_can_be_typed_too(monkeypatch, tmp_path):
    own = tmp_path / "my tools" / "patchline"
    own.parent.mkdir()
    own.touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(own)])
    monkeypatch.setenv("PATH", "/nowhere")
    said = command("logs -f", "a-1", Settings(root="file:///tmp/results", mlflow=""))
    assert shlex.split(said)[:4] == ["my tools/patchline", "logs", "-f", "a-1"]
