"""The examples in docs/operations.md that need no cluster run as they stand there."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.commands.base import console
from pipeline.config import parse_workflow

PAGE = (Path(__file__).parents[2] / "docs/operations.md").read_text()
RUNBOOK = PAGE[PAGE.index("## From nothing to") :]


def run(command: str) -> str:
    """What a command of the page prints."""
    answer = CliRunner().invoke(app, shlex.split(command)[1:], terminal_width=200)
    assert answer.exit_code == 0, (command, answer.output, answer.exception)
    return answer.output


def commands() -> list[str]:
    """Lines of the page that begin with `$ patchline`, those that go on put together; comments left out."""
    lines = re.findall(r"^\$ (patchline (?:[^\n\\]|\\\n)*)", RUNBOOK, re.MULTILINE)
    return [re.sub(r"\s+#.*", "", line.replace("\\\n", " ")) for line in lines]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATCHLINE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(console, "width", 160)
    (workflow,) = re.findall(r"```yaml\n(.*?)```", RUNBOOK, re.DOTALL)
    (tmp_path / "vit-l16.yaml").write_text(workflow)
    return tmp_path


def test_the_shape_and_its_files_are_made_as_the_page_has_it(here: Path):
    told = [run(command) for command in commands() if command.startswith("patchline deploy")]
    assert len(told) == 3
    for line in (
        "cluster.yaml: change what is marked <-",
        "23 files: up to 64 GPUs; docs/operations.md has what to do",
    ):
        assert any(line in output for output in told)
        assert line in PAGE
    (python,) = re.findall(r"```python\n(.*?)```", RUNBOOK, re.DOTALL)
    exec(python, {})
    for name in re.findall(r"deploy/(?:karpenter|kuberay|mlflow|ray-up|bucket)/[\w.-]+\.\w+", RUNBOOK):
        assert (here / name).exists(), name


def test_the_room_beside_machines_that_work_is_what_the_pods_ask_for(here: Path):
    run("patchline deploy init cluster.yaml")
    run("patchline deploy render cluster.yaml")
    asked = []
    for path in (here / "deploy").rglob("*.yaml"):
        for found in yaml.safe_load_all(path.read_text()):
            spec = found.get("spec", {})
            if found.get("kind") == "RayCluster":
                containers = [*spec["headGroupSpec"]["template"]["spec"]["containers"], spec["autoscalerOptions"]]
            elif found.get("kind") in ("Deployment", "StatefulSet"):
                containers = spec["template"]["spec"]["containers"]
            else:
                continue
            asked += [container["resources"]["requests"] for container in containers]
    cores = sum(float(request["cpu"]) for request in asked)
    gigabytes = sum(float(request["memory"].removesuffix("G")) for request in asked)
    assert f"| {cores:g} cores and {gigabytes:g} GB for the head" in RUNBOOK


def test_what_the_page_says_of_time_is_what_is_made(here: Path):
    run("patchline deploy init cluster.yaml")
    run("patchline deploy render cluster.yaml")
    (minutes,) = re.findall(r"machines wait (\d+) minutes for it", RUNBOOK)
    (cluster,) = yaml.safe_load_all((here / "deploy/kuberay/30-ray.yaml").read_text())
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    for group in groups:
        (container,) = group["template"]["spec"]["containers"]
        told = {item["name"]: item.get("value") for item in container["env"]}
        assert told["RAY_gcs_rpc_server_reconnect_timeout_s"] == str(60 * int(minutes))
    (days,) = re.findall(r"parts of unfinished uploads and\nreplaced versions go after (\d+) days", RUNBOOK)
    rules = json.loads((here / "deploy/bucket/lifecycle.json").read_text())["Rules"]
    unfinished, old = (rule for rule in rules if rule["Status"] == "Enabled" and rule["Filter"] == {"Prefix": ""})
    assert unfinished["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"] == int(days)
    assert old["NoncurrentVersionExpiration"]["NoncurrentDays"] == int(days)
    (quiet,) = re.findall(r"starts it again where its heartbeat is\s+(\d+)\s+minutes old", RUNBOOK)
    supervise = (here / "deploy/kuberay/40-supervise.yaml").read_text()
    assert f"-lt {60 * int(quiet)}\n" in supervise


def test_the_plan_is_as_the_page_has_it(here: Path):
    (plan,) = [command for command in commands() if command.startswith("patchline plan")]
    told = run(plan)
    told, page = (" ".join(text.split()) for text in (told, RUNBOOK))
    for words in (
        "first epoch 1.5 TB to each machine in 25 min 40 s, trained on in 3 min 24 s; 110 kB an image, stated",
        "speed 68,529 images/s",
        "time 1 h 42 min, 4.54 GPU-days",
        "! the first epoch waits for storage: to fetch its images takes 25 min 40 s, to train on them 3 min 24 s: 22 "
        "min 16 s that `time` leaves out",
    ):
        assert words in told
        assert words in page


def test_the_images_alone_are_the_first_lines_of_the_workflow(here: Path):
    (lines,) = re.findall(r"head -n (\d+) vit-l16.yaml", RUNBOOK)
    text = (here / "vit-l16.yaml").read_text()
    images = parse_workflow("\n".join(text.splitlines()[: int(lines)]), "images.yaml")
    assert images.stages == {"ingest": parse_workflow(text, "vit-l16.yaml").stages["ingest"]}


def test_the_workflow_fits_the_cluster(here: Path):
    workflow = parse_workflow((here / "vit-l16.yaml").read_text(), "vit-l16.yaml")
    pretrain = workflow.stages["pretrain"]
    assert pretrain.model_dump()["workers"] == 64
    # Eight of them on a pod of the example, which has 180 cores.
    assert 8 * pretrain.model_dump()["cpus_per_worker"] <= 180


def test_each_command_is_one_that_there_is():
    known = {command.name or str(command.callback.__name__) for command in _commands()}
    for name in re.findall(r"(?:^\$ |`)patchline ([a-z][a-z-]+)", RUNBOOK, re.MULTILINE):
        # Of another page.
        assert name in known | {"deploy", "preflight"}, name


def _commands():
    return [command for group in app.registered_groups for command in group.typer_instance.registered_commands]
