"""The command as a user meets it: its help, its answers to mistakes, and what it costs to ask."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from PIL import Image

from cluster.local.processes import Process, free_ports
from cluster.local.servers import Secrets
from cluster.local.stack import SERVICES, Stack, _write
from cluster.storage import open_storage, retry
from pipeline import api, cli
from pipeline.commands.base import console
from pipeline.config import load_workflow, shipped
from pipeline.driver import create
from pipeline.head import LeaseLost
from pipeline.record import EventLog, mark
from tests.unit.pipeline.job_server import RAY, JobServer

COMMANDS = [
    *(
        "init",
        "doctor",
        "up",
        "down",
        "demo",
        "plan",
        "run",
        "submit",
        "ingest",
        "status",
        "logs",
        "list",
        "resume",
        "cancel",
        "ui",
    ),
    *(
        "schema",
        "resume-all",
        "retry",
        "get-output",
        "report",
        "delete",
        "gc",
        "verify",
        "supervise",
        "import",
        "export",
        "register",
        "deploy",
    ),
]
VERBS = [
    "retry --from ingest",
    "get-output ingest",
    "register --name x",
    "report",
    "delete digits",
    "verify pretrain",
    "cancel --now",
]
"""Those that ask for a workflow, beside the first ones."""
HEAVY = ["torch", "deepspeed", "ray", "mlflow", "webdataset", "boto3"]


@dataclass(frozen=True)
class Answer:
    """What a command left for its user."""

    code: int
    out: str
    error: str


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, so that no stack is up and nothing has been done."""
    home = tmp_path / "home"
    monkeypatch.setenv("PATCHLINE_HOME", str(home))
    monkeypatch.setenv("COLUMNS", "160")
    # The console took its width when it was made.
    monkeypatch.setattr(console, "width", 160)
    return home


@pytest.fixture
def patchline(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The command, run in this process."""

    def run(*arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["patchline", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        code = end.value.code
        return Answer(code if isinstance(code, int) else 0, captured.out, captured.err)

    return run


@pytest.fixture
def submitted(home: Path) -> str:
    """A workflow that stands in storage as after `submit`, before its driver has started; its id."""
    storage = open_storage(f"file://{home}/results")
    workflow_id = create(storage, load_workflow("digits"))
    mark(storage, workflow_id, "submitted")
    EventLog(storage, workflow_id).append("driver_submitted", number=0)
    storage.write(f"workflows/{workflow_id}/logs/driver-1/000000.log", b"first line [not markup]\n")
    storage.write(f"workflows/{workflow_id}/logs/driver-1/000001.log", b"second line\n")
    return workflow_id


def refused(answer: Answer, *expected: str) -> None:
    """One message that says all this, nothing else, and the exit code for what a user can mend."""
    assert answer.code == 2, answer
    assert answer.out == ""
    assert answer.error.startswith("error: ")
    assert len(answer.error.splitlines()) == 1, answer.error
    for words in expected:
        assert words in answer.error


def test_help_lists_every_command(patchline):
    answer = patchline("--help")
    assert answer.code == 0
    for name in COMMANDS:
        assert f"│ {name} " in answer.out


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_shows_how_to_use_it(patchline, name: str):
    answer = patchline(name, "--help")
    assert answer.code == 0
    assert f"Example: patchline {name}" in answer.out


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["pretrain.epoch=3"], "stages.pretrain.epoch: unknown field; did you mean 'epochs'?"),
        (["pretrain.model.depht=3"], "stages.pretrain.model.depht: unknown field; did you mean 'depth'?"),
        (["pretrain.zero_stage=7"], "stages.pretrain.zero_stage: got 7, expected 0, 1, 2 or 3"),
        (["pretrain.lr=fast"], "stages.pretrain.lr: got 'fast', expected a valid number"),
        (["pretrain.updates=5"], "stages.pretrain: give one of epochs and updates, got epochs=80.0 and updates=5"),
        (["pretrain.workers=3"], "global_batch=128 is not a multiple of workers=3: try workers=2"),
        (["finetune.from=ingest"], "stages.finetune.from: stage 'ingest' makes a dataset, expected one that makes a m"),
        (["pretrain.lr"], "-o pretrain.lr: expected a field and a value, for example -o pretrain.epochs=3"),
        (["pretrian.lr=1"], "'pretrian' is no stage of this workflow; its stages: ingest, pretrain, finetune, fewshot"),
        (["pretrain.lr=[1"], "-o pretrain.lr=[1: the value is not readable as YAML"),
    ],
)
def test_a_mistake_in_an_override_is_told_with_its_place_value_and_cure(patchline, overrides, expected):
    options = [word for override in overrides for word in ("-o", override)]
    refused(patchline("plan", "digits", *options), expected)


@pytest.mark.parametrize("command", ["plan", "run", "submit"])
def test_every_command_that_takes_a_workflow_refuses_it_alike(patchline, command: str, tmp_path: Path):
    path = tmp_path / "mine.yaml"
    document = yaml.safe_load(load_workflow("digits").to_yaml())
    document["stages"]["pretrain"]["colour"] = "blue"
    path.write_text(yaml.safe_dump(document))
    refused(patchline(command, str(path)), f"{path}:", ": stages.pretrain.colour: unknown field")
    shipped = "Shipped workflows: digits, families, fashion, folder, positions, scaling, and rows of tables"
    refused(patchline(command, "digts"), f"no workflow file 'digts'; did you mean 'digits'? {shipped}")
    assert not (tmp_path / "home" / "results").exists()


def test_a_mistake_keeps_the_demo_from_starting_any_server(patchline, home: Path):
    refused(patchline("demo", "-o", "pretrain.epoch=3"), "did you mean 'epochs'?")
    assert not home.exists()


def test_two_mistakes_are_told_at_once_each_on_its_line(patchline):
    answer = patchline("plan", "digits", "-o", "pretrain.epoch=3", "-o", "pretrain.lr=fast")
    assert answer.code == 2
    assert len(answer.error.splitlines()) == 2
    assert "pretrain.epoch: unknown field" in answer.error
    assert "pretrain.lr: got 'fast'" in answer.error


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"\xff\xfe\x00", "cannot be read"),
        (b"stages: [", "not readable as YAML"),
        (b"- a\n- b\n", "expected a mapping with the keys name and stages"),
        (b"name: mine\nstages: {ingest: {source: {kind: ftp}}}", "stages.ingest.source.kind: got 'ftp'"),
        (b"name: mine\nstages: {ingest: {}}", "stages.ingest.source: this field is required"),
    ],
    ids=["no text", "no YAML", "no mapping", "no such source", "no source"],
)
def test_a_file_that_is_no_workflow_is_named(patchline, tmp_path: Path, body: bytes, expected: str):
    path = tmp_path / "mine.yaml"
    path.write_bytes(body)
    refused(patchline("plan", str(path)), f"{path}:", expected)


def test_a_folder_of_images_that_is_not_there_is_told_before_anything_runs(patchline, tmp_path: Path):
    answer = patchline("plan", "folder", "-o", f"ingest.source.path={tmp_path}/images")
    refused(answer, f"{tmp_path}/images")


@pytest.mark.parametrize("command", ["plan digits", "status", "list", "submit digits"])
def test_a_root_that_is_none_is_refused(patchline, command: str):
    answer = patchline(*command.split(), "--root", "gs://bucket")
    refused(answer, "root 'gs://bucket': expected file:///FOLDER or s3://BUCKET/PREFIX")


@pytest.mark.parametrize(
    "command",
    ["list", "status", "logs", "resume", "cancel", "plan digits", "run digits", "gc", "resume-all --dry-run", *VERBS],
)
def test_storage_that_does_not_answer_is_told_with_its_address(patchline, monkeypatch, command: str):
    monkeypatch.setattr(retry, "FIRST_PAUSE_S", 0.001)
    nowhere = f"http://127.0.0.1:{free_ports(1)[0]}"
    for name, value in {"ENDPOINT_URL": nowhere, "ACCESS_KEY_ID": "id", "SECRET_ACCESS_KEY": "key"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    answer = patchline(*command.split(), "--root", "s3://bucket/x")
    refused(answer, f"s3://bucket/x at {nowhere}: ", "Could not connect to the endpoint URL")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--champion a/b --no-champion", "--champion a/b and --no-champion contradict each other"),
        ("--lower-is-better", "--lower-is-better says nothing without --champion METRIC"),
        ("--champion accuracy", "--champion accuracy: expected a figure such as finetune/test/accuracy"),
        ("--champion a/test/loss --name x", "no workflow"),
    ],
)
def test_what_register_cannot_do_is_told(patchline, words: str, expected: str):
    refused(patchline("register", *words.split()), expected)


def test_a_driver_that_lost_its_lease_says_so_and_nothing_else(patchline, monkeypatch):
    def lost(*_: object, **__: object) -> None:
        raise LeaseLost("stages/ingest/x is at epoch 2 (running, another); ours was 1")

    monkeypatch.setattr(api, "run", lost)
    answer = patchline("run", "digits")
    assert (answer.code, answer.out) == (70, "")
    assert answer.error == "another driver took over: stages/ingest/x is at epoch 2 (running, another); ours was 1\n"


def test_an_unknown_option_and_an_unknown_command_are_refused(patchline):
    assert (patchline("plan", "digits", "--rot", "x").code, patchline("paln", "digits").code) == (2, 2)


@pytest.mark.parametrize("command", ["status", "logs", "resume", "cancel"])
def test_a_workflow_that_is_not_there_is_refused(patchline, command: str, submitted: str, home: Path):
    root = f"file://{home}/results"
    before = sorted(open_storage(root).list(""))
    refused(patchline(command, "digits-2019"), f"no single workflow 'digits-2019' in {root}: none matches")
    refused(patchline(command, "--root", f"file://{home}/empty"), f"no workflow in file://{home}/empty yet")
    assert sorted(open_storage(root).list("")) == before


@pytest.mark.parametrize("command", ["status", "logs", "resume", "cancel"])
def test_a_beginning_that_fits_two_workflows_is_refused_with_both(patchline, command: str, submitted: str, home: Path):
    storage = open_storage(f"file://{home}/results")
    other = create(storage, load_workflow("digits"))
    mark(storage, other, "submitted")
    refused(patchline(command, "digits-"), "no single workflow 'digits-'", "2 match", submitted, other)


def test_submitting_without_a_cluster_says_how_to_get_one_and_leaves_nothing(patchline, home: Path):
    refused(patchline("submit", "digits"), "no Ray cluster: give --address http://HOST:8265", "`patchline up`")
    refused(
        patchline("submit", "digits", "--address", "http://10.0.0.1:8265"),
        "http://10.0.0.1:8265 is not this machine's own stack: name --root s3://BUCKET/PREFIX and --mlflow",
    )
    assert list(open_storage(f"file://{home}/results").list("")) == []


def test_one_line_turns_a_folder_into_shards(patchline, home: Path, tmp_path: Path):
    for name in ("cat", "dog"):
        for number in range(10):
            path = tmp_path / "photos" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    answer = patchline("ingest", str(tmp_path / "photos"), f"file://{tmp_path}/shards")
    assert answer.code == 0, answer
    assert "images 20" in answer.out
    assert {path.name for path in (tmp_path / "shards").glob("*.tar")} == {
        f"{split}-000000.tar" for split in ("train", "validation", "test")
    }
    again = patchline("ingest", str(tmp_path / "photos"), f"file://{tmp_path}/shards")
    assert "reused" in again.out
    told = json.loads(patchline("ingest", str(tmp_path / "photos"), f"file://{tmp_path}/shards", "--json").out)
    assert (told["state"], told["stages"]["ingest"]["outcome"]) == ("done", "reused")
    refused(patchline("ingest", f"{tmp_path}/nowhere"), "nowhere: expected a folder of images for each class")


def test_there_is_nothing_to_show_or_stop_where_no_stack_is_up(patchline):
    refused(patchline("ui"), "the local stack is not up: `patchline up` starts it")
    answer = patchline("down")
    assert (answer.code, answer.out) == (0, "nothing was running\n")


def test_the_addresses_say_where_the_token_for_rays_page_is_and_not_what_it_is(patchline, home: Path):
    home.mkdir()
    started = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    processes = dict.fromkeys(SERVICES, Process(pid=os.getpid(), started=started, log=""))
    secrets = Secrets(access_key="access", secret_key="secret", ray_token="0123456789abcdef")
    ports = dict(zip(("s3", "mlflow", "dashboard"), free_ports(3), strict=True))
    _write(home, Stack(home=str(home), temporary="", secrets=secrets, ports=ports, processes=processes))
    shown = patchline("ui").out
    assert f"http://127.0.0.1:{ports['dashboard']}  asks for the token in {home}/ray-token\n" in shown
    assert secrets.ray_token not in shown


@pytest.mark.parametrize(
    "command",
    ["list", "status", "logs", "resume", "cancel", "plan digits", "run digits", "gc", "resume-all --dry-run", *VERBS],
)
def test_after_down_no_command_quietly_looks_elsewhere(patchline, home: Path, command: str):
    home.mkdir()
    found = Secrets(access_key="access", secret_key="secret", ray_token="token")
    _write(home, Stack(home=str(home), temporary=str(home / "t"), secrets=found))
    not_up = "the local stack is not up (s3, mlflow, ray do not run): `patchline up` starts it"
    refused(patchline(*command.split()), not_up, f"or name another root, such as --root file://{home}/results")
    refused(patchline("ui"), not_up)
    assert patchline("down").out == "nothing was running\n"
    assert patchline("list", "--root", f"file://{home}/results").code == 0
    assert patchline("plan", "digits", "--root", f"file://{home}/results").code == 0
    assert not (home / "results").exists()


def test_a_submitted_workflow_is_listed_shown_and_cancelled(patchline, submitted: str, home: Path):
    assert patchline("list").out.split() == ["submitted", submitted]
    assert json.loads(patchline("list", "--json").out) == {submitted: "submitted"}
    shown = json.loads(patchline("status", submitted[:20], "--json").out)
    assert (shown["id"], shown["state"]) == (submitted, "submitted")
    assert {name: stage["outcome"] for name, stage in shown["stages"].items()} == dict.fromkeys(
        ("ingest", "pretrain", "finetune", "fewshot"), "pending"
    )
    table = patchline("status").out
    for words in (submitted, "ingest", "pretrain", "finetune", "fewshot", "pending"):
        assert words in table
    assert f"{submitted} will stop after a checkpoint" in " ".join(patchline("cancel").out.split())
    assert any(open_storage(f"file://{home}/results").list(f"workflows/{submitted}/CANCEL"))


def test_cancelled_at_once_it_is_stopped_listed_and_deleted(patchline, submitted: str, home: Path):
    assert json.loads(patchline("resume-all", "--state", "submitted", "--dry-run", "--json").out) == [
        {"id": submitted, "state": "submitted", "submitted": False, "problem": ""}
    ]
    refused(patchline("delete", submitted), f"{submitted} is submitted: `patchline cancel {submitted}` first")
    refused(patchline("retry", "--from", "ingest"), f"{submitted} is submitted")
    found = json.loads(patchline("cancel", "--now", "--json").out)
    assert (found["id"], found["jobs"], found["problem"]) == (submitted, [], "")
    assert json.loads(patchline("status", "--json").out)["state"] == "stopped"
    assert json.loads(patchline("list", "--json").out) == {submitted: "stopped"}
    refused(patchline("cancel", "--now"), f"{submitted} does not run (stopped): there is nothing to cancel")
    refused(patchline("retry", "--from", "ingest"), "--from ingest: it has not run yet: `patchline resume")
    refused(patchline("get-output", "ingest"), f"stage 'ingest' of {submitted} is not done")
    refused(patchline("verify", "pretrain"), f"stage 'pretrain' of {submitted} is not done")
    dry = patchline("delete", submitted, "--dry-run").out
    assert f"workflows/{submitted}  " in dry
    assert "would remove" in dry
    assert json.loads(patchline("delete", submitted, "--json").out)["dry_run"] is False
    assert json.loads(patchline("list", "--json").out) == {}
    refused(patchline("delete", submitted), f"no single workflow '{submitted}' in", "none matches")


def test_a_workflow_is_submitted_and_retried_by_its_id(patchline, home: Path, monkeypatch):
    from cluster import jobs

    sent: list[str] = []
    monkeypatch.setattr(jobs, "versions", lambda address: jobs.Versions(ray=RAY, python=platform.python_version()))
    monkeypatch.setattr(jobs, "status", lambda address, job: "PENDING")
    monkeypatch.setattr(jobs, "submit", lambda address, command, *, submission_id, **_: sent.append(submission_id))
    places = ["--address", "http://head:8265", "--root", f"file://{home}-results", "--mlflow", "http://mlflow:5000"]
    first = patchline("submit", "digits", "--id", "nightly", *places, "--json")
    assert json.loads(first.out) == {"id": "nightly", "state": "new", "driver": 0}
    again = patchline("submit", "digits", "--id", "nightly", *places)
    assert (again.code, again.out) == (0, "nightly\n")
    assert again.error == "nightly is submitted: nothing was submitted\n"
    refused(
        patchline("submit", "digits", "--id", "nightly", "-o", "pretrain.epochs=3", *places),
        "--id nightly is another workflow's, which differs in stages.pretrain.epochs: 80.0 → 3.0",
    )
    assert sent == ["nightly-d0"]
    monkeypatch.setattr(jobs, "status", lambda address, job: "FAILED")
    monkeypatch.setattr(jobs, "logs", lambda address, job: "no room")
    followed = patchline("submit", "digits", "--id", "followed", "--follow", *places, "--json")
    lines = [json.loads(line) for line in followed.out.splitlines()]
    assert lines[0] == {"id": "followed", "state": "new", "driver": 0}
    assert lines[-1]["id"] == "followed"
    warned = patchline("submit", "digits", "-o", "pretrain.global_batch=256", *places)
    assert warned.error == (
        "! pretrain: global_batch=256, and lr=0.003 is for 128: "
        "with lr_scale, linear makes it 0.006 and sqrt makes it 0.00424\n"
    )


def test_a_stored_log_is_printed_as_it_was(patchline, submitted: str):
    assert patchline("logs").out == "first line [not markup]\nsecond line\n"
    refused(patchline("logs", "--stage", "pretrain"), "stage 'pretrain' has no log in", "stages that ran: none")


def test_the_schema_is_one_and_knows_good_files_from_bad(patchline):
    from jsonschema import Draft202012Validator

    schema = json.loads(patchline("schema").out)
    Draft202012Validator.check_schema(schema)
    judge = Draft202012Validator(schema)
    for name in shipped():
        document = yaml.safe_load(load_workflow(name).to_yaml())
        assert [error.message for error in judge.iter_errors(document)] == []
        next(iter(document["stages"].values()))["colour"] = "blue"
        assert not judge.is_valid(document)


def test_a_plan_needs_no_server_and_no_heavy_library_and_changes_nothing(home: Path, tmp_path: Path):
    # No address in this environment has a server behind it.
    nowhere = f"http://127.0.0.1:{free_ports(1)[0]}"
    environment = {**os.environ, "MLFLOW_TRACKING_URI": nowhere, "RAY_API_SERVER_ADDRESS": nowhere}
    code = (
        "import sys; from pipeline.cli import main\n"
        "try: main()\n"
        f"finally: print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    sizes = ["--images", "1079", "--classes", "7", "--on", "h100x8"]
    command = ["plan", "digits", "--json", "--root", f"file://{tmp_path}/root", *sizes]
    found = subprocess.run(
        [sys.executable, "-c", code, *command], env=environment, capture_output=True, text=True, check=True
    )
    assert [(stage["name"], stage["action"]) for stage in json.loads(found.stdout)] == [
        (name, "run") for name in ("ingest", "pretrain", "finetune", "fewshot")
    ]
    assert found.stderr.strip() == "[]"
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("command", ["--help", "submit --help", "plan digits", "list", "status"])
def test_what_is_asked_often_brings_no_heavy_library_along(submitted: str, home: Path, command: str):
    """Also where a submitted driver has to be asked for: the cluster's answer takes less than Ray's import."""
    code = (
        "import sys; from pipeline.cli import main\n"
        "try: main()\n"
        f"finally: print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    server = JobServer()
    environment = {**os.environ, "PATCHLINE_ROOT": f"file://{home}/results", "RAY_API_SERVER_ADDRESS": server.url}
    with server.running():
        found = subprocess.run(
            [sys.executable, "-c", code, *command.split()], env=environment, capture_output=True, text=True, check=True
        )
    assert found.stderr.strip() == "[]"


def test_a_plan_on_a_cluster_has_memory_time_and_money_as_json(patchline):
    sizes = ["--images", "1000", "--classes", "7", "--on", "l4x8"]
    answer = patchline("plan", "digits", *sizes, "--price", "0.8", "--efficiency", "0.3", "--json")
    stages = {stage["name"]: stage for stage in json.loads(answer.out)}
    assert stages["ingest"]["estimate"] is None
    found = stages["pretrain"]["estimate"]
    assert {"checkpoint_bytes", "upload_seconds", "images_per_s", "days", "device_days", "money"} <= set(found)
    assert (found["efficiency"], found["efficiency_from"]) == (0.3, "stated")
    assert [(row["zero_stage"], row["activation_checkpointing"]) for row in found["rows"] if row["chosen"]] == [
        (2, False)
    ]
    parts = ("weights", "gradients", "optimizer", "activations", "buffers")
    for row in found["rows"]:
        assert row["memory"]["total"] == sum(row["memory"][part] for part in parts)


def test_a_plan_on_a_cluster_is_readable_on_100_columns(patchline, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(console, "width", 100)
    answer = patchline("plan", "digits", "--images", "1000", "--classes", "7", "--on", "h100x8", "--price", "2.5")
    assert max(len(line.rstrip()) for line in answer.out.splitlines()) <= 100
    for words in ("checkpointing", "activations", "78.5 of 80 can be used", "▶ 2", "GPU-days", "together"):
        assert words in answer.out


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--on", "h1000x8"], "did you mean h100?"),
        (["--on", "h100"], "'h100' says not how many: write h100x8"),
        (["--price", "2.5"], "--price says nothing without --on"),
    ],
)
def test_a_cluster_that_is_not_understood_is_told(patchline, options, expected):
    refused(patchline("plan", "digits", *options), expected)


def test_the_plan_of_a_person_says_why(patchline):
    shown = patchline("plan", "digits").out
    for name in ("ingest", "pretrain", "finetune", "fewshot"):
        assert f"no {name} has been done yet" in shown


def test_as_a_process_a_mistake_is_one_line_and_exit_code_2(home: Path):
    found = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "plan", "digits", "-o", "pretrain.epoch=3"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 2
    assert found.stdout == ""
    (line,) = found.stderr.splitlines()
    assert line.startswith("error: ")
    assert line.endswith("did you mean 'epochs'?")


def test_data_sets_are_mixed_and_reduced_in_a_workflow_file(patchline, home: Path, tmp_path: Path):
    for name in ("cat", "7"):
        for number in range(40):
            path = tmp_path / "photos" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, 90, len(name))).save(path)
    workflow = {
        "digits": {"kind": "ingest", "source": {"kind": "digits"}},
        "photos": {"kind": "ingest", "source": {"kind": "folder", "path": str(tmp_path / "photos")}},
        "both": {"kind": "mixture", "data": ["digits", "photos"], "weights": [1, 2]},
        "part": {"kind": "subset", "data": "both", "fraction": 0.5, "without": ["digits"]},
    }
    file = tmp_path / "data.yaml"
    file.write_text(json.dumps({"name": "data", "stages": workflow}))
    planned = patchline("plan", str(file))
    assert planned.code == 0, planned
    answer = patchline("run", str(file))
    assert answer.code == 0, answer
    again = patchline("run", str(file))
    assert again.out.count("↺ reused") == 4
    workflow["both"]["weights"] = [1, 3]
    file.write_text(json.dumps({"name": "data", "stages": workflow}))
    changed = patchline("plan", str(file))
    assert changed.out.count("reuse") >= 2
    workflow["both"]["data"] = ["digits", "part"]
    file.write_text(json.dumps({"name": "data", "stages": workflow}))
    refused(patchline("plan", str(file)), "stages refer to each other in a circle")
    workflow["both"]["data"] = ["digits", "photo"]
    file.write_text(json.dumps({"name": "data", "stages": workflow}))
    refused(patchline("plan", str(file)), "stages.both.data.1: got 'photo', expected one of the stages")
