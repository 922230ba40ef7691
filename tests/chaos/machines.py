"""A Ray cluster of several machines on one: each has a network namespace, an address, a name and folders of its own.

All are on one bridge, and so are the stack's S3 and MLflow servers. What one does to a machine is what happens to real
ones: its cable is pulled (`part`), it reaches the servers alone (`cut`), its link becomes slow (`slow`), all
of its processes end at once (`lose`). Needs root or user namespaces, and the `ip` command.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cluster import job_server
from cluster.environment import in_force
from cluster.errors import UserError
from cluster.local.stack import Stack
from pipeline.settings import Settings

START_SECONDS = 300.0
GCS, DASHBOARD = 6379, 8265
ENDLESS = 100_000.0
"""Megabits per second of a link that nothing limits."""
OTHERS = ("parent", "1:", "classid", "1:2")
"""What the other machines send, among what a link carries."""
SOON = {
    # A machine whose raylet has ended is lost within seconds, one that answers no more after some 15; by default it
    # takes half a minute and more. One that is busy for some seconds is not.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
    # Several start at once, on few cores.
    "RAY_raylet_start_wait_time_s": "300",
}


def missing() -> str:
    """Why there can be no such machines here; empty where there can."""
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        return "the commands ip and unshare are not installed (apt install iproute2 util-linux)"
    name = f"pl{secrets.token_hex(3)}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return made.stderr.strip()


class Machines:
    """A head, which has no room for workers, and machines with one CPU each. A context manager.

    `environment` is all machines' own, beside what they need to reach the servers. `with_redis`, the head's tables are
    in a Redis that is on none of them.
    """

    def __init__(
        self,
        stack: Stack,
        count: int,
        environment: Mapping[str, str] | None = None,
        *,
        with_redis: bool = False,
    ) -> None:
        self._stack, self.count, self._environment = stack, count, dict(environment or {})
        self._megabits, self._with_redis = ENDLESS, with_redis
        self._redis: subprocess.Popen[bytes] | None = None
        self._redis_port = 0
        self._id = secrets.token_hex(2)
        self._net = f"10.{71 + secrets.randbelow(100)}.{secrets.randbelow(250)}"
        self.folder = Path(tempfile.mkdtemp(prefix="patchline-m-"))
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._doors: list[_Door] = []

    def __enter__(self) -> Machines:
        try:
            self._wire()
            if self._with_redis:
                self._start_redis()
            self.start(0)
            self.wait()
            for number in range(1, self.count + 1):
                self.start(number)
            self.wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for number in list(self._processes):
            self.lose(number)
        for number in range(self.count + 1):
            _ip("netns", "del", self._name(number), check=False)
        _ip("link", "del", self._bridge, check=False)
        for door in self._doors:
            door.close()
        if self._redis is not None:
            self._redis.kill()
            self._redis.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)

    # What is there

    def settings(self, root: str) -> Settings:
        """Those of a client that is on none of the machines."""
        s3, mlflow = (f"http://{self._net}.1:{door.port}" for door in self._doors)
        own = self._stack.s3_environment()
        places = {name: s3 for name in own if name.endswith(("ENDPOINT_URL", "ENDPOINT_URL_S3"))}
        nowhere = {"NO_PROXY": "*", "no_proxy": "*"}
        environment = {**own, **places, **self._stack.ray_environment(), **nowhere}
        jobs = f"http://{self.address(0)}:{DASHBOARD}"
        return Settings(root=root, mlflow=mlflow, jobs=jobs, environment=environment)

    def address(self, number: int) -> str:
        """Of a machine; the head is number 0."""
        return f"{self._net}.{10 + number}"

    def own_folder(self, number: int) -> Path:
        """Where a machine's processes keep temporary files."""
        return self.folder / str(number)

    def processes(self, number: int) -> list[int]:
        """Ids of all that runs on a machine."""
        found = _ip("netns", "pids", self._name(number), check=False)
        return [int(word) for word in found.split()]

    def with_process(self, *words: str) -> list[int]:
        """Machines that have a process whose command line has all these words."""
        return [number for number in range(self.count + 1) if self._matching(number, words)]

    def _matching(self, number: int, words: Sequence[str]) -> list[int]:
        found = []
        for pid in self.processes(number):
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if all(word in command for word in words):
                    found.append(pid)
        return found

    # What happens to them

    def start(self, number: int) -> None:
        """Start Ray on a machine: on the head first."""
        own = self.own_folder(number)
        own.mkdir(exist_ok=True)
        command = [
            "ip",
            "netns",
            "exec",
            self._name(number),
            "unshare",
            "--uts",
            "--pid",
            "--fork",
            "--mount-proc",
            "sh",
            "-c",
        ]
        ray = " ".join(self._ray(number))
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_", "RAY_"))},
            **self.settings("").environment,
            **SOON,
            # As in the image of a cluster's machines.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            # So that each has a cache of its own.
            "TMPDIR": str(own),
            "RAY_JOB_STOP_WAIT_TIME_S": "60",
            "RAY_JOB_ALLOW_DRIVER_ON_WORKER_NODES": "1",
            "PYTHONWARNINGS": "ignore",
            **self._environment,
            **(self._tables(number) if self._with_redis else {}),
        }
        with open(self.folder / f"{number}.log", "ab") as log:
            self._processes[number] = subprocess.Popen(
                [*command, f"hostname machine-{number} && exec {ray}"],
                env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=own,
            )  # fmt: skip

    def wait(self) -> None:
        """Until the head knows all machines that were started."""
        deadline = time.monotonic() + START_SECONDS
        with in_force(self._stack.ray_environment()):
            while time.monotonic() < deadline:
                with contextlib.suppress(UserError, OSError):
                    if self._alive() >= len(self._processes):
                        return
                time.sleep(0.5)
        logs = "\n".join(f"{log}: {log.read_text()[-2000:]}" for log in sorted(self.folder.glob("*.log")))
        raise AssertionError(f"the machines did not find each other within {START_SECONDS:.0f} s:\n{logs}")

    def lose(self, number: int) -> None:
        """End all processes of a machine at once, as if its power were cut."""
        for _ in range(5):
            for pid in self.processes(number):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        process = self._processes.pop(number, None)
        if process is not None:
            process.wait(60)

    def part(self, number: int) -> None:
        """Pull a machine's cable: its processes go on, and reach nobody."""
        _ip("link", "set", self._wire_of(number), "down")

    def join(self, number: int) -> None:
        """Plug the cable in again."""
        _ip("link", "set", self._wire_of(number), "up")

    def cut(self, number: int) -> None:
        """Let a machine reach none of the others any more, nor they it; the servers still."""
        # What comes from where no way leads back to is not taken.
        strict = "echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter"
        _ip("netns", "exec", self._name(number), "sh", "-c", strict)
        for other in range(self.count + 1):
            if other != number:
                way = ("route", "add", "blackhole", f"{self.address(other)}/32")
                _ip("netns", "exec", self._name(number), "ip", *way)

    def uncut(self, number: int) -> None:
        """Let a machine that was cut off reach the others again."""
        for other in range(self.count + 1):
            if other != number:
                way = ("route", "del", "blackhole", f"{self.address(other)}/32")
                _ip("netns", "exec", self._name(number), "ip", *way)

    def narrow(self, megabits: float) -> None:
        """Give all links a rate of their own, in 10^6 bits/s for what the other machines send."""
        self._megabits = megabits
        for number in range(self.count + 1):
            self.mend(number)

    def slow(self, number: int, megabits: float) -> None:
        """Give a machine's link a rate, in 10^6 bits/s for what the other machines send it."""
        _tc("class", "change", "dev", self._wire_of(number), *OTHERS, "htb", "rate", f"{megabits}mbit")

    def mend(self, number: int) -> None:
        """Give a machine's link its own rate back."""
        self.slow(number, self._megabits)

    # How they are made

    def _wire(self) -> None:
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("addr", "add", f"{self._net}.1/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")
        for number in range(self.count + 1):
            name, inside = self._name(number), f"{self._wire_of(number)}i"
            _ip("netns", "add", name)
            _ip("link", "add", self._wire_of(number), "type", "veth", "peer", "name", inside)
            _ip("link", "set", self._wire_of(number), "master", self._bridge, "up")
            _ip("link", "set", inside, "netns", name)
            within = ("netns", "exec", name, "ip")
            _ip(*within, "addr", "add", f"{self.address(number)}/24", "dev", inside)
            _ip(*within, "link", "set", inside, "up")
            _ip(*within, "link", "set", "lo", "up")
            # Nothing is behind it; Ray finds out by it which address is its own.
            _ip(*within, "route", "add", "default", "via", f"{self._net}.1")
            self._limit(number)
        for port in (self._stack.ports["s3"], self._stack.ports["mlflow"]):
            self._doors.append(_Door(f"{self._net}.1", port))

    def _limit(self, number: int) -> None:
        """Give a machine's link its rate. What the head and the servers send has none, so that Ray does not take a
        machine with a slow link for lost."""
        wire = self._wire_of(number)
        _tc("qdisc", "add", "dev", wire, "root", "handle", "1:", "htb", "default", "1")
        _tc("class", "add", "dev", wire, "parent", "1:", "classid", "1:1", "htb", "rate", f"{ENDLESS}mbit")
        _tc("class", "add", "dev", wire, *OTHERS, "htb", "rate", f"{self._megabits}mbit")
        for other in range(1, self.count + 1):
            source = ("u32", "match", "ip", "src", f"{self.address(other)}/32", "flowid", "1:2")
            _tc("filter", "add", "dev", wire, "parent", "1:", "protocol", "ip", *source)

    def _start_redis(self) -> None:
        with socket.create_server((f"{self._net}.1", 0)) as free:
            self._redis_port = free.getsockname()[1]
        command = ["redis-server", "--bind", f"{self._net}.1", "--port", str(self._redis_port)]
        with open(self.folder / "redis.log", "ab") as log:
            self._redis = subprocess.Popen(
                [*command, "--protected-mode", "no", "--save", "", "--dir", str(self.folder)], stdout=log, stderr=log
            )

    def _tables(self, number: int) -> dict[str, str]:
        """Environment of a cluster whose head finds its tables in Redis, as `cluster.deploy.kuberay` has it."""
        place = {"RAY_REDIS_ADDRESS": f"{self._net}.1:{self._redis_port}"} if number == 0 else {}
        return {**place, "RAY_gcs_rpc_server_reconnect_timeout_s": "1200"}

    def _ray(self, number: int) -> Iterator[str]:
        own = self.address(number)
        yield from (sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats")
        yield from (f"--node-ip-address={own}", f"--object-store-memory={100 * 2**20}")
        # Sockets of its own: raylets that share a folder take each other's where they start at the same time.
        yield from ("--min-worker-port=0", "--max-worker-port=0", f"--temp-dir={self.folder / f'ray-{number}'}")
        if number == 0:
            yield from ("--head", f"--port={GCS}", "--num-cpus=0")
            yield from (f"--dashboard-host={own}", f"--dashboard-port={DASHBOARD}", "--include-dashboard=true")
        else:
            yield from (f"--address={self.address(0)}:{GCS}", "--num-cpus=1")

    def _alive(self) -> int:
        found = job_server.ask(f"http://{self.address(0)}:{DASHBOARD}", "/api/v0/nodes") or {}
        nodes = found.get("data", {}).get("result", {}).get("result", [])
        return sum(node["state"] == "ALIVE" for node in nodes)

    @property
    def _bridge(self) -> str:
        return f"pl{self._id}b"

    def _name(self, number: int) -> str:
        return f"patchline-{self._id}-{number}"

    def _wire_of(self, number: int) -> str:
        return f"pl{self._id}{number}"


class _Door:
    """Passes connections to an address of the bridge on to a server of the loopback."""

    def __init__(self, host: str, target: int) -> None:
        self._target = target
        self._listener = socket.create_server((host, 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                inner, _ = self._listener.accept()
            except OSError:
                return
            try:
                outer = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                # The server takes no connection just now; others may come.
                inner.close()
                continue
            for source, sink in ((inner, outer), (outer, inner)):
                threading.Thread(target=_pass_on, args=(source, sink), daemon=True).start()


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(2**16):
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def _ip(*words: str, check: bool = True) -> str:
    return _run("ip", *words, check=check)


def _tc(*words: str) -> None:
    _run("tc", *words, check=True)


def _run(*words: str, check: bool) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout
