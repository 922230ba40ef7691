"""The local stack as a whole: start what is missing, wait until it works, stop what we started."""

from __future__ import annotations

import fcntl
import json
import os
import secrets as random_secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from cluster.environment import in_force
from cluster.errors import UserError, check_format
from cluster.local import servers
from cluster.local.processes import Process, start, stop
from cluster.local.servers import BUCKET, HOST, Secrets, write_private

FORMAT = 1
START_SECONDS = 90.0
TRIES = 3
"""A port can be taken between the look and the start; then the server is started again on others."""

SERVICES = ("s3", "mlflow", "ray")
Report = Callable[[str], None]
Companions = Mapping[str, Callable[["Stack"], Sequence[str]]]
"""Commands that run beside the servers and use them, by name; each is made for the stack as it is."""


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Addresses, credentials and processes of a local stack."""

    home: str
    temporary: str
    secrets: Secrets
    ports: dict[str, int] = field(default_factory=dict)
    processes: dict[str, Process] = field(default_factory=dict)

    @property
    def s3_endpoint(self) -> str:
        return f"http://{HOST}:{self.ports['s3']}"

    @property
    def mlflow_url(self) -> str:
        return f"http://{HOST}:{self.ports['mlflow']}"

    @property
    def jobs_address(self) -> str:
        return f"http://{HOST}:{self.ports['dashboard']}"

    @property
    def root(self) -> str:
        return f"s3://{BUCKET}"

    @property
    def token_path(self) -> str:
        return str(Path(self.home) / "ray-token")

    @property
    def credentials_path(self) -> str:
        return str(Path(self.home) / servers.CREDENTIALS)

    def environment(self) -> dict[str, str]:
        """What a process needs to use the whole stack."""
        return {**self.s3_environment(), "MLFLOW_TRACKING_URI": self.mlflow_url, **self.ray_environment()}

    def s3_environment(self) -> dict[str, str]:
        """What a process needs to use the stack's S3 server."""
        return {
            # A file that its owner alone can read: Ray shows a job's variables on the command lines of its workers.
            "AWS_SHARED_CREDENTIALS_FILE": self.credentials_path,
            "AWS_PROFILE": servers.PROFILE,
            # Other credentials in the environment would come first.
            "AWS_ACCESS_KEY_ID": "",
            "AWS_SECRET_ACCESS_KEY": "",
            "AWS_SESSION_TOKEN": "",
            "AWS_SECURITY_TOKEN": "",
            "AWS_WEB_IDENTITY_TOKEN_FILE": "",
            "AWS_ENDPOINT_URL_S3": self.s3_endpoint,
            "AWS_ENDPOINT_URL": self.s3_endpoint,
            "MLFLOW_S3_ENDPOINT_URL": self.s3_endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            # Other stores than AWS do not know boto3's newer checksums.
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
            **_direct(),
        }

    def ray_environment(self) -> dict[str, str]:
        """What a process needs to use the stack's Ray cluster."""
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": self.token_path,
            # Nobody takes this machine away with notice, and the watcher is one more process to start.
            "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
            **_direct(),
        }


def load(home: Path) -> Stack | None:
    """The stack that was started from `home`, or None where it is not up."""
    stack = _read(home)
    return stack if stack is not None and not _not_running(stack) else None


def missing(home: Path) -> list[str]:
    """Services that do not run of a stack that was once started from `home`; none where there never was one."""
    stack = _read(home)
    return _not_running(stack) if stack is not None else []


def up(home: Path, report: Report = lambda line: None, companions: Companions = MappingProxyType({})) -> Stack:
    """Start what does not run and wait until everything works. Raises UserError with a log's end otherwise.

    Companions are started once it does. Calling it again is cheap; two calls at once do not disturb each other.
    """
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    (home / "logs").mkdir(exist_ok=True, mode=0o700)
    with _lock(home):
        stack = _read(home) or _new(home)
        for attempt in range(TRIES):
            stack = _start_missing(home, stack, report, elsewhere=attempt > 0)
            broken = _wait(home, stack, report)
            if not broken:
                return _start_companions(home, stack, report, companions)
            if attempt + 1 == TRIES:
                raise UserError("\n".join(_failure(stack, name) for name in broken))
            for name in broken:
                stop(stack.processes[name])
        raise AssertionError("unreachable")


def down(home: Path) -> list[str]:
    """Stop the processes that `up` started; returns the services that were running. Data stays."""
    if not home.is_dir():
        return []
    with _lock(home):
        stack = _read(home)
        if stack is None:
            return []
        running = stop(*stack.processes.values())
        ended = [name for name, process in stack.processes.items() if process in running]
        _write(home, replace(stack, processes={}))
        shutil.rmtree(stack.temporary, ignore_errors=True)
        return ended


def _not_running(stack: Stack) -> list[str]:
    return [name for name in SERVICES if name not in stack.processes or not stack.processes[name].alive]


def _start_missing(home: Path, stack: Stack, report: Report, *, elsewhere: bool) -> Stack:
    """Start what does not run, where it was before, so that whoever uses it goes on; or `elsewhere`, on other ports."""
    absent, before = _not_running(stack), stack.ports
    for name in SERVICES:
        if name in absent:
            process, ports = _start(home, stack, name, {} if elsewhere else before)
            processes = {**stack.processes, name: process}
            stack = replace(stack, ports={**stack.ports, **ports}, processes=processes)
            _write(home, stack)
        if name == "s3" and stack.ports["s3"] != before.get("s3") and "mlflow" not in absent:
            # It keeps its artifacts there.
            stop(stack.processes["mlflow"])
            absent.append("mlflow")
    if stack.ports != before:
        # They were given the addresses of before.
        stop(*(process for name, process in stack.processes.items() if name not in SERVICES))
    # Nobody may be there to hear it: so after everything that the next call could not tell.
    for name in absent:
        report(f"{name}: started")
    return stack


def _start(home: Path, stack: Stack, name: str, before: Mapping[str, int]) -> tuple[Process, dict[str, int]]:
    if name == "s3":
        return servers.start_s3(home, stack.secrets, before)
    if name == "mlflow":
        return servers.start_mlflow(home, stack.s3_environment(), before)
    Path(stack.temporary).mkdir(exist_ok=True, mode=0o700)
    return servers.start_ray(home, Path(stack.temporary), stack.ray_environment(), before)


def _start_companions(home: Path, stack: Stack, report: Report, companions: Companions) -> Stack:
    for name, command in companions.items():
        if name not in stack.processes or not stack.processes[name].alive:
            environment = {**stack.environment(), "PATCHLINE_HOME": str(home)}
            process = start(command(stack), environment=environment, log=home / "logs" / f"{name}.log", folder=home)
            stack = replace(stack, processes={**stack.processes, name: process})
            _write(home, stack)
            report(f"{name}: started")
    return stack


def _wait(home: Path, stack: Stack, report: Report) -> list[str]:
    """Wait until every server works; returns those that do not."""
    checks = {
        "s3": lambda: servers.s3_works(stack.s3_endpoint),
        "mlflow": lambda: servers.mlflow_works(stack.mlflow_url),
        "ray": lambda: servers.ray_works(stack.jobs_address, stack.secrets.ray_token),
    }
    deadline = time.monotonic() + START_SECONDS
    with in_force(stack.s3_environment()):
        while checks and time.monotonic() < deadline:
            for name in list(checks):
                if not stack.processes[name].alive:
                    return [name]
                if checks[name]():
                    del checks[name]
                    report(f"{name}: ready")
            time.sleep(0.2 if checks else 0)
    return list(checks)


def _failure(stack: Stack, name: str) -> str:
    log = stack.processes[name].log
    try:
        tail = "\n".join(Path(log).read_text(errors="replace").splitlines()[-15:])
    except OSError as error:
        tail = str(error)
    return f"{name} does not start; the end of {log}:\n{tail}"


def _direct() -> dict[str, str]:
    """Loopback is never behind a proxy, whatever the user's environment says of other addresses."""
    found = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    names = [name for name in found.split(",") if name]
    value = ",".join([*names, *(name for name in (HOST, "localhost") if name not in names)])
    return {"no_proxy": value, "NO_PROXY": value}


def _new(home: Path) -> Stack:
    found = Secrets(
        access_key=random_secrets.token_hex(10),
        secret_key=random_secrets.token_hex(20),
        ray_token=random_secrets.token_hex(32),
    )
    # Ray puts sockets there, whose paths may have 107 characters at most; so it is not below the home.
    temporary = Path(tempfile.mkdtemp(prefix="pl-"))
    stack = Stack(home=str(home), temporary=str(temporary), secrets=found)
    write_private(home / "ray-token", found.ray_token)
    _write(home, stack)
    return stack


def _read(home: Path) -> Stack | None:
    try:
        document = json.loads((home / "stack.json").read_text())
    except FileNotFoundError:
        return None
    check_format(document.pop("format"), FORMAT, str(home / "stack.json"))
    document["secrets"] = Secrets(**document["secrets"])
    document["processes"] = {name: Process(**process) for name, process in document["processes"].items()}
    return Stack(**document)


def _write(home: Path, stack: Stack) -> None:
    write_private(home / "stack.json", json.dumps({"format": FORMAT, **asdict(stack)}, indent=2))


@contextmanager
def _lock(home: Path) -> Iterator[None]:
    with open(home / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
