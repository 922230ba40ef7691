import json
import os
import socket
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cluster import local
from cluster.errors import UserError
from cluster.local.processes import Process, stop
from cluster.local.servers import HOST, Secrets, write_private
from cluster.local.stack import FORMAT, SERVICES, Stack, _read, _start_companions, _write
from tests.unit.cluster.test_processes import soon

SECRETS = Secrets(access_key="access", secret_key="secret", ray_token="token")


def stack(home: Path, **processes: Process) -> Stack:
    ports = {"s3": 21001, "mlflow": 21002, "dashboard": 21003}
    return Stack(home=str(home), temporary=str(home / "t"), secrets=SECRETS, ports=ports, processes=processes)


def us() -> Process:
    """This very process, as if it were a server."""
    started = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    return Process(pid=os.getpid(), started=started, log="")


def gone() -> Process:
    return replace(us(), started="1")


def test_a_stack_comes_back_from_its_file_as_it_was(tmp_path: Path):
    written = stack(tmp_path, s3=us())
    _write(tmp_path, written)
    assert _read(tmp_path) == written


def test_a_home_without_a_stack_has_none(tmp_path: Path):
    assert local.load(tmp_path) is None
    assert local.load(tmp_path / "absent") is None
    assert list(tmp_path.iterdir()) == []


def test_a_stack_counts_as_up_only_while_all_its_servers_run(tmp_path: Path):
    running = dict.fromkeys(SERVICES, us())
    _write(tmp_path, stack(tmp_path, **running))
    assert local.load(tmp_path) == stack(tmp_path, **running)
    for name in SERVICES:
        _write(tmp_path, stack(tmp_path, **{**running, name: gone()}))
        assert local.load(tmp_path) is None
        _write(tmp_path, stack(tmp_path, **{other: us() for other in SERVICES if other != name}))
        assert local.load(tmp_path) is None


@pytest.mark.parametrize("act", [local.load, local.down, local.up])
def test_a_file_of_a_newer_version_is_refused(tmp_path: Path, act):
    _write(tmp_path, stack(tmp_path))
    document = json.loads((tmp_path / "stack.json").read_text())
    (tmp_path / "stack.json").write_text(json.dumps({**document, "format": FORMAT + 1, "moon": "full"}))
    with pytest.raises(UserError, match=rf"stack\.json has format {FORMAT + 1}.* up to {FORMAT}: install a newer"):
        act(tmp_path)


def test_down_where_nothing_was_ever_up_does_nothing(tmp_path: Path):
    assert local.down(tmp_path / "absent") == []
    assert not (tmp_path / "absent").exists()
    assert local.down(tmp_path) == []


def test_down_forgets_servers_that_have_gone_and_ends_nobody_elses(tmp_path: Path):
    _write(tmp_path, stack(tmp_path, **dict.fromkeys(SERVICES, gone())))
    # Had it taken the id for the process, these tests would end here.
    assert local.down(tmp_path) == []
    found = _read(tmp_path)
    assert found is not None
    assert found.processes == {}
    assert found.secrets == SECRETS


def test_a_companion_is_started_once_and_stopped_with_the_stack(tmp_path: Path):
    (tmp_path / "logs").mkdir()
    said: list[str] = []
    commands = {"watcher": lambda stack: [sys.executable, "-c", f"import time; time.sleep(600)  # {stack.root}"]}
    _write(tmp_path, stack(tmp_path))
    first = _start_companions(tmp_path, stack(tmp_path), said.append, commands)
    assert first.processes["watcher"].alive
    assert _start_companions(tmp_path, first, said.append, commands) == first
    assert said == ["watcher: started"]
    assert local.down(tmp_path) == ["watcher"]
    assert soon(lambda: not first.processes["watcher"].alive)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the servers' programs, one that only runs."""
    (tmp_path / "bin").mkdir()
    for name in ("python", "weed"):
        write_private(tmp_path / "bin" / name, "#!/bin/sh\nexec sleep 600\n")
        (tmp_path / "bin" / name).chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))


def closed(line: str) -> None:
    """Tells what somebody does who reads no further, as `head -1` does."""
    raise BrokenPipeError(line)


def test_servers_of_which_nobody_hears_are_known_all_the_same(tmp_path: Path, programs: None):
    with pytest.raises(BrokenPipeError, match="s3: started"):
        local.up(tmp_path / "home", closed)
    first = local.load(tmp_path / "home")
    assert first is not None
    stop(first.processes["s3"])
    with socket.socket() as other:
        other.bind((HOST, first.ports["s3"]))
        with pytest.raises(BrokenPipeError, match="s3: started"):
            local.up(tmp_path / "home", closed)
    second = local.load(tmp_path / "home")
    assert second is not None
    # It was given the address of before.
    assert soon(lambda: not first.processes["mlflow"].alive)
    assert first.processes["ray"] == second.processes["ray"]
    assert local.down(tmp_path / "home") == [*SERVICES]
    assert soon(lambda: not any(process.alive for process in second.processes.values()))


def test_a_private_file_is_private_from_its_first_byte(tmp_path: Path):
    path, before = tmp_path / "token", os.umask(0)
    path.write_text("old")
    path.chmod(0o666)
    try:
        write_private(path, "new")
    finally:
        os.umask(before)
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]
