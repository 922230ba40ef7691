"""`patchline deploy`, as a user meets it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from cluster.deploy.rendering import render
from cluster.errors import UserError
from pipeline import deploying
from pipeline.cli import app
from pipeline.config import load_workflow, parse_workflow


def run(*words: str) -> str:
    """The command's lines, or its error."""
    answer = CliRunner().invoke(app, ["deploy", *words], terminal_width=200)
    if answer.exception is not None and not isinstance(answer.exception, SystemExit):
        raise answer.exception
    return answer.output


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_from_nothing_to_files(here: Path):
    assert run("init").startswith("cluster.yaml: change what is marked <-")
    told = run("render", "--workflow", "digits")
    assert "up to 64 GPUs" in told
    found = {str(path.relative_to(here / "deploy")) for path in (here / "deploy").rglob("*") if path.is_file()}
    assert found == {*render(deploying.load_shape(Path("cluster.yaml"))), "jobs/vit-digits.yaml"}
    (file, _) = yaml.safe_load_all((here / "deploy/jobs/vit-digits.yaml").read_text())
    assert parse_workflow(file["data"]["workflow.yaml"], "it") == load_workflow("digits")
    assert (here / "deploy/bucket/apply.sh").stat().st_mode & 0o111


def test_one_part_alone(here: Path):
    run("init", "mine.yaml")
    run("render", "mine.yaml", "--only", "bucket", "--to", "out")
    assert {path.name for path in (here / "out").iterdir()} == {"bucket"}


def test_a_file_of_ones_own_is_not_written_over(here: Path):
    run("init")
    (here / "cluster.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"cluster.yaml is there already: name another file"):
        run("init")
    assert (here / "cluster.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cluster.yaml: cannot be read .* `patchline deploy init` writes one to begin with"),
        ("name: [", "not readable as YAML"),
        ("name: a\nname: b", "line 2: 'name' is there twice"),
        ("name: vit", "nodes: this field is required"),
        ("name: vit\nimge: x:1", "imge: unknown field; did you mean 'image'"),
        ("- vit", "expected a mapping of fields|got"),
        ("nodes: {cpus: 4, memory_gb: 8, max: 0}", "nodes.max: got 0, expected greater than or equal to 1"),
        ("nodes: {cpus: 4, memory_gb: 32, min: 2}", "nodes: min=2 is more than max=1: lower min or raise max"),
        ("gpus: {model: h99}", "gpus.model: got 'h99', expected one of a100-40"),
    ],
)
def test_mistakes_are_told_by_their_field(here: Path, text: str | None, words: str):
    if text is not None:
        (here / "cluster.yaml").write_text(text)
    with pytest.raises(UserError, match=words):
        run("render")
    assert not (here / "deploy").exists()


def test_a_part_that_there_is_not(here: Path):
    run("init")
    with pytest.raises(
        UserError, match="--only helm: expected one of karpenter, kuberay, mlflow, ray-up, bucket, docker"
    ):
        run("render", "--only", "helm")
