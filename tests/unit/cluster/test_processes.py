import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.local import processes
from cluster.local.processes import Process, free_ports, start, stop, take_again

# A server whose child is deaf to SIGTERM, as a child in the middle of a long call is.
FAMILY = """
import os, signal, sys, time
child = os.fork()
if child == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    {more}
    open(sys.argv[1], "w").write(str(os.getpid()))
    time.sleep(600)
time.sleep(600)
"""
SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "STOP_SECONDS", 0.5)


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[Process]:
    process = start(SLEEP, environment={}, log=tmp_path / "log", folder=tmp_path)
    yield process
    stop(process)


def runs(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def soon(condition: Callable[[], bool]) -> bool:
    """Whether it comes true within a time that no idle machine needs."""
    deadline = time.monotonic() + 120
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def written(path: Path) -> str:
    """The text of a file that another process is about to write."""
    assert soon(lambda: path.exists() and path.read_text() != "")
    return path.read_text()


@pytest.mark.parametrize(
    "more", ["", "os.setpgid(0, 0)", "os.setsid()"], ids=["same group", "its own group", "its own session"]
)
def test_stopping_a_server_ends_its_children_too_though_they_ignore_sigterm(tmp_path: Path, more: str):
    command = [sys.executable, "-c", FAMILY.format(more=more), str(tmp_path / "child")]
    server = start(command, environment={}, log=tmp_path / "log", folder=tmp_path)
    child = int(written(tmp_path / "child"))
    assert server.alive
    assert runs(child)
    assert stop(server) == [server]
    # They are not gone in the very moment in which they are killed.
    assert soon(lambda: not runs(child))
    assert soon(lambda: not server.alive)
    assert not runs(server.pid)


def test_a_process_that_ends_at_sigterm_is_not_waited_for(sleeper: Process, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processes, "STOP_SECONDS", 60.0)
    began = time.monotonic()
    assert stop(sleeper) == [sleeper]
    assert time.monotonic() - began < 45


def test_a_server_gets_sigterm_before_anything_worse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processes, "STOP_SECONDS", 120.0)
    command = ["sh", "-c", 'trap "echo saved; exit 0" TERM; echo ready; for i in $(seq 6000); do sleep 0.1; done']
    server = start(command, environment={}, log=tmp_path / "log", folder=tmp_path)
    written(tmp_path / "log")
    stop(server)
    assert (tmp_path / "log").read_text().split()[-1] == "saved"


def test_a_deaf_server_that_is_gone_when_it_is_to_be_killed_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    server = start([sys.executable, "-c", code], environment={}, log=tmp_path / "log", folder=tmp_path)
    written(tmp_path / "log")
    kill = os.kill

    def late(pid: int, number: int) -> None:
        kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        kill(pid, number)

    monkeypatch.setattr(os, "kill", late)
    assert stop(server) == [server]
    assert not runs(server.pid)


def test_a_later_process_with_the_same_id_is_left_alone(sleeper: Process):
    """The id in the file is that of a process of long ago; now somebody else has it."""
    stale = replace(sleeper, started=str(int(sleeper.started) - 1))
    assert not stale.alive
    assert stop(stale) == []
    assert sleeper.alive


def test_what_has_ended_by_itself_is_neither_alive_nor_stopped(sleeper: Process):
    os.kill(sleeper.pid, signal.SIGKILL)
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    # Nobody has collected it, so its entry in /proc is still there.
    assert Path(f"/proc/{sleeper.pid}").exists()
    assert not sleeper.alive
    assert stop(sleeper) == []


def test_stopping_one_server_leaves_the_other(sleeper: Process, tmp_path: Path):
    other = start(SLEEP, environment={}, log=tmp_path / "other", folder=tmp_path)
    assert stop(other) == [other]
    assert sleeper.alive


def test_a_server_outlives_the_process_that_started_it(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from cluster.local.processes import start; folder = Path(sys.argv[1]); "
        f"found = start({SLEEP!r}, environment={{}}, log=folder / 'log', folder=folder); "
        "print(found.pid, found.started)"
    )
    found = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    pid, started = found.stdout.split()
    server = Process(pid=int(pid), started=started, log="")
    assert server.alive
    assert os.getsid(server.pid) == server.pid
    assert stop(server) == [server]
    assert soon(lambda: not server.alive)


def test_the_log_is_for_the_owner_alone_and_grows(tmp_path: Path):
    log, before = tmp_path / "log", os.umask(0)
    try:
        for word in ("first", "second"):
            command = ["sh", "-c", f"echo {word}; echo {word} error >&2"]
            process = start(command, environment={}, log=log, folder=tmp_path)
            assert soon(lambda process=process: not process.alive)
    finally:
        os.umask(before)
    assert log.read_text().splitlines() == ["first", "first error", "second", "second error"]
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_a_server_gets_its_own_settings_and_none_of_the_users_other_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the user's own")
    monkeypatch.setenv("RAY_ADDRESS", "the user's own")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "the user's own")
    monkeypatch.setenv("LANG", "C.UTF-8")
    process = start(["env"], environment={"RAY_AUTH_MODE": "token"}, log=tmp_path / "log", folder=tmp_path)
    assert soon(lambda: not process.alive)
    lines = (tmp_path / "log").read_text().splitlines()
    assert not [line for line in lines if line.endswith("the user's own")]
    assert {"RAY_AUTH_MODE=token", "LANG=C.UTF-8"} <= set(lines)


def test_free_ports_are_distinct_and_bindable():
    ports = free_ports(12)
    assert len(set(ports)) == 12
    sockets = [socket.socket() for _ in ports]
    try:
        for port, place in zip(ports, sockets, strict=True):
            place.bind(("127.0.0.1", port))
            place.listen()
    finally:
        for place in sockets:
            place.close()


def test_ports_are_taken_again_unless_somebody_has_them():
    ports = free_ports(3)
    assert take_again(ports)
    with socket.socket() as server, socket.socket() as user:
        # As servers do.
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", ports[1]))
        server.listen()
        assert not take_again(ports)
        user.connect(("127.0.0.1", ports[1]))
        accepted, _ = server.accept()
        # Whoever closes first lingers.
        accepted.close()
    assert take_again(ports)
    code = f"from cluster.local.processes import take_again; print(take_again({ports}))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout == "False\n"


def test_a_port_in_use_is_not_called_free(monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as taken:
        first = free_ports(1)[0]
        taken.bind(("127.0.0.1", first))
        # The search begins at a random place: here, right before the port that is taken.
        monkeypatch.setattr(os, "urandom", ((first - 21001) % 11000).to_bytes)
        assert first not in free_ports(3)


def test_ports_are_given_to_one_process_alone():
    code = "from cluster.local.processes import free_ports; print(free_ports(10)); input()"
    others = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    try:
        given = [json.loads(other.stdout.readline()) for other in others] + [free_ports(10) for _ in range(5)]
    finally:
        for other in others:
            other.communicate("\n")
    ports = [port for own in given for port in own]
    assert len(ports) == len(set(ports)) == 80
