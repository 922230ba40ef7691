"""The local stack, and gangs, tasks and jobs on a real Ray cluster."""

from __future__ import annotations

import ipaddress
import json
import os
import platform
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from cluster import jobs, local
from cluster.environment import in_force
from cluster.errors import UserError
from cluster.gang import Place, most_workers, run_gang
from cluster.local.processes import free_ports
from cluster.local.stack import SERVICES, Stack
from cluster.storage import open_storage
from cluster.tasks import map_tasks
from tests.integration.flows import descendants, small_workflow, wait_for

pytestmark = pytest.mark.cluster
REPOSITORY = Path(__file__).parents[2]


def started(pid: int) -> str | None:
    """When a process began, which tells it from a later one of its id; None where it does not run."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else fields[19]


def family(stack: Stack) -> dict[int, str]:
    """All processes of a stack and when they began: its servers, and whatever these have started."""
    servers = {process.pid for process in stack.processes.values()}
    found = {pid: started(pid) for pid in servers.union(*map(descendants, servers))}
    return {pid: began for pid, began in found.items() if began is not None}


def still_running(processes: dict[int, str]) -> list[int]:
    return [pid for pid, began in processes.items() if started(pid) == began]


def environment(stack: Stack) -> Any:
    """The environment of a stack, in force for a while."""
    return in_force(stack.environment())


# What runs on the cluster, in one job: each gang takes seconds to start.


def stumble(task: tuple[str, str], place: Place) -> None:
    """Each rank leaves a note of where it stands; the last one fails in one of three ways, while the others are
    busy for longer than any test."""
    how, folder = task
    note = {"world_size": place.world_size, "local_rank": place.local_rank, "job": os.environ.get("OF_THE_JOB")}
    # Long before anybody makes a process group: nobody else can take the port meanwhile.
    with socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), timeout=60):
        pass
    (Path(folder) / f"{how}-{place.rank}").write_text(json.dumps(note))
    if place.rank < place.world_size - 1:
        time.sleep(3600)
    if how == "mistake":
        raise UserError("shots: got 70, expected at most 60")
    if how == "exception":
        raise ZeroDivisionError("nothing to divide by")
    # Past the start, which Ray Train reports in other words, and of which nothing is to be seen here.
    time.sleep(10)
    os.kill(os.getpid(), signal.SIGKILL)


def last_first(item: int) -> tuple[int, int]:
    time.sleep(0.2 * (3 - item))
    return item, os.getpid()


def refuse(item: int) -> int:
    if item == 2:
        raise UserError("image 2: got a PDF, expected a JPEG")
    return item


def die_once(notes: str) -> int:
    """How many tries it took; the first one ends its own process."""
    with open(notes, "a") as file:
        file.write("try\n")
    tries = len(Path(notes).read_text().splitlines())
    if tries == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return tries


def own_labels() -> dict[str, str]:
    """Those of the cluster's only machine: Ray gives it some."""
    from cluster.connect import connect

    (machine,) = connect().nodes()
    assert machine["Labels"]
    return dict(machine["Labels"])


def room() -> list[int]:
    """Workers that there is room for: as many as there are halves of a core; with its labels; and with other ones."""
    labels = own_labels()
    other = {**labels, next(iter(labels)): "another"}
    return [
        most_workers(0.5),
        most_workers(0.5, labels=labels),
        most_workers(0.5, memory=1e6),
        most_workers(0.5, labels=other),
    ]


def no_room(folder: str) -> None:
    """A gang that nothing can start, which is given up sooner than those that a slow machine starts late."""
    with in_force({"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5"}):
        run_gang(stumble, ("never", folder), workers=2, cpus=1000, name="no-room")


def drive(folder: str) -> None:
    """The job: what comes of each gang and of each set of tasks, as JSON."""
    acts: dict[str, Callable[[], Any]] = {
        "tasks": lambda: [os.getpid(), *map_tasks(last_first, [1, 2, 3], label="last first", ray=True)],
        "mistaken task": lambda: list(map_tasks(refuse, [1, 2, 3], label="refuse", ray=True)),
        "dying task": lambda: list(map_tasks(die_once, [f"{folder}/tries"], label="die once", ray=True)),
        "mistake": lambda: run_gang(stumble, ("mistake", folder), workers=2, cpus=0.5, name="mistake"),
        # On a machine with a label, and with memory.
        "exception": lambda: run_gang(
            stumble, ("exception", folder), workers=2, cpus=0.5, memory=0.1, labels=own_labels(), name="exception"
        ),
        "death": lambda: run_gang(stumble, ("death", folder), workers=2, cpus=0.5, name="death"),
        "room": room,
        "no room": lambda: no_room(folder),
    }
    outcomes = {}
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "300"
    for name, act in acts.items():
        began = time.monotonic()
        try:
            outcomes[name] = {"value": act()}
        except Exception as error:
            outcomes[name] = {"error": type(error).__name__, "text": str(error), "died": getattr(error, "died", None)}
        print(f"{name}: {time.monotonic() - began:.1f} s: {outcomes[name]}", flush=True)
    (Path(folder) / "outcomes.json").write_text(json.dumps(outcomes))


@pytest.fixture
def submit(stack_environment: Stack) -> Iterator[Callable[..., str]]:
    """Start a shell command as a job and return its id; what still runs after the test is stopped."""
    stack, ids = stack_environment, []

    def start(command: str, **environment: str) -> str:
        ids.append(f"test-{uuid.uuid4().hex[:8]}")
        jobs.submit(
            stack.jobs_address,
            command,
            submission_id=ids[-1],
            environment={**stack.environment(), **environment},
            modules=None,
            metadata={},
        )
        return ids[-1]

    yield start
    for submission_id in ids:
        with suppress(UserError):
            if jobs.status(stack.jobs_address, submission_id) in ("PENDING", "RUNNING"):
                jobs.stop(stack.jobs_address, submission_id)


def ended(stack: Stack, submission_id: str, seconds: float = 300) -> str:
    """The state in which a job ends."""

    def state() -> str | None:
        try:
            found = jobs.status(stack.jobs_address, submission_id)
        except UserError:
            # The job server may be slow to answer, and is asked again.
            return None
        return None if found in ("PENDING", "RUNNING") else found

    return wait_for(state, seconds, f"end of job {submission_id}")


@pytest.fixture(scope="module")
def outcomes(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of everything in `drive`, with the notes that ranks have left."""
    folder, address = tmp_path_factory.mktemp("outcomes"), stack.jobs_address
    job = f"test-{uuid.uuid4().hex[:8]}-outcomes"
    call = f"from tests.integration import test_cluster; test_cluster.drive({str(folder)!r})"
    with environment(stack):
        jobs.submit(
            address,
            shlex.join([sys.executable, "-c", call]),
            submission_id=job,
            environment={**stack.environment(), "PYTHONPATH": str(REPOSITORY), "OF_THE_JOB": "yes"},
            modules=None,
            metadata={},
        )
        try:
            assert ended(stack, job, seconds=480) == "SUCCEEDED", jobs.logs(address, job)
        finally:
            with suppress(UserError):
                if jobs.status(address, job) == "RUNNING":
                    jobs.stop(address, job)
    found = json.loads((folder / "outcomes.json").read_text())
    return {**found, "notes": [json.loads(path.read_text()) for path in sorted(folder.glob("death-*"))]}


def ask(url: str, *, body: bytes | None = None, method: str | None = None, token: str | None = None) -> int:
    """The status of an answer to a request with no credentials but the token."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(url, data=body, method=method, headers=headers)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=120) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def listening(pids: Iterable[int]) -> set[tuple[str, int]]:
    """Address and port of every TCP socket that one of these processes listens on."""
    inodes = set()
    for pid in pids:
        try:
            links = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
        except (FileNotFoundError, ProcessLookupError):
            continue
        inodes |= {link[len("socket:[") : -1] for link in links if link.startswith("socket:[")}
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, place, _, state, *rest = line.split()
            if state == "0A" and rest[5] in inodes:
                address, port = place.split(":")
                found.add((_address(address), int(port, 16)))
    return found


def _address(text: str) -> str:
    """An address of the kernel's table, whose words of four bytes are the wrong way round."""
    words = [bytes.fromhex(text[i : i + 8])[::-1] for i in range(0, len(text), 8)]
    address = ipaddress.ip_address(b"".join(words))
    return str(getattr(address, "ipv4_mapped", None) or address)


# The stack


def test_bringing_up_what_is_up_starts_nothing(stack: Stack):
    lines: list[str] = []
    again = local.up(Path(stack.home), report=lines.append)
    assert again == stack
    assert [line for line in lines if "started" in line] == []
    assert local.load(Path(stack.home)) == stack


def test_every_server_listens_on_loopback_alone(stack: Stack):
    found = listening(family(stack))
    # All servers are among them, so that the answer is about them.
    assert set(stack.ports.values()) <= {port for _, port in found}
    assert [place for place in sorted(found) if not ipaddress.ip_address(place[0]).is_loopback] == []


def test_credentials_are_for_their_owner_alone(stack: Stack):
    home = Path(stack.home)
    modes = {
        name: (home / name).stat().st_mode & 0o777 for name in ("stack.json", "ray-token", "s3.json", "s3-credentials")
    }
    assert modes == dict.fromkeys(modes, 0o600)
    assert [path for path in (home / "logs").iterdir() if path.stat().st_mode & 0o077] == []
    secrets = (stack.secrets.secret_key, stack.secrets.ray_token)
    commands = []
    for pid in still_running(family(stack)):
        with suppress(FileNotFoundError, ProcessLookupError):
            commands.append(Path(f"/proc/{pid}/cmdline").read_text())
    assert commands
    # Everybody on the machine can read command lines.
    assert not [command for command in commands for secret in secrets if secret in command]


@pytest.mark.parametrize("token", [None, "wrong"])
def test_the_job_server_refuses_strangers(stack: Stack, tmp_path: Path, token: str | None):
    body = json.dumps({"entrypoint": f"touch {tmp_path}/owned"}).encode()
    agent = f"http://127.0.0.1:{stack.ports['agent']}/api/job_agent/jobs/"
    for url in (f"{stack.jobs_address}/api/jobs/", agent):
        assert ask(url, body=body, token=token) in (401, 403)
    for path in ("/api/jobs/", "/api/version", "/api/cluster_status", "/nodes?view=summary"):
        assert ask(stack.jobs_address + path, token=token) in (401, 403)
    assert ask(f"{stack.jobs_address}/api/version", token=stack.secrets.ray_token) == 200
    assert not (tmp_path / "owned").exists()


def test_s3_refuses_strangers(stack_environment: Stack, s3_root: str):
    stack, prefix = stack_environment, s3_root.removeprefix("s3://")
    open_storage(s3_root).write("secret", b"body")
    for method, path in (
        ("GET", f"{prefix}/secret"),
        ("PUT", f"{prefix}/secret"),
        ("DELETE", f"{prefix}/secret"),
        ("GET", ""),
        ("PUT", "another-bucket"),
        ("GET", f"{prefix.partition('/')[0]}?list-type=2"),
    ):
        assert ask(f"{stack.s3_endpoint}/{path}", method=method, body=b"" if method == "PUT" else None) == 403
    assert open_storage(s3_root).read("secret") == b"body"


def test_a_killed_server_comes_back_with_its_data_and_down_ends_its_own_processes_alone(stack: Stack):
    home = Path(tempfile.mkdtemp(prefix="patchline-second-"))
    try:
        first = local.up(home)
        with environment(first):
            open_storage(first.root).write("kept/object", b"body")
        os.kill(first.processes["s3"].pid, signal.SIGKILL)
        wait_for(lambda: not first.processes["s3"].alive, 300, "end of the S3 server")
        assert local.load(home) is None

        second = local.up(home)
        assert second.processes["s3"] != first.processes["s3"]
        assert second.processes["ray"] == first.processes["ray"], Path(first.processes["ray"].log).read_text()[-3000:]
        assert second.secrets == first.secrets
        with environment(second):
            assert open_storage(second.root).read("kept/object") == b"body"

        # A job that takes no notice: it must not outlive its cluster.
        job = json.dumps({"entrypoint": f"trap '' TERM; echo $$ > {home}/job; while :; do sleep 1; done"}).encode()
        assert ask(f"{second.jobs_address}/api/jobs/", body=job, token=second.secrets.ray_token) == 200
        wait_for(lambda: (home / "job").exists() and (home / "job").read_text(), 300, "job")
        processes = family(second)
        assert int((home / "job").read_text()) in processes
        assert local.down(home) == list(SERVICES)
        assert local.load(home) is None
        wait_for(lambda: not still_running(processes), 300, f"end of {still_running(processes)}")
        assert not Path(second.temporary).exists()
        assert local.down(home) == []

        # The other stack did not notice: nothing to start, and everything answers.
        assert local.up(Path(stack.home)) == stack
    finally:
        local.down(home)
        shutil.rmtree(home, ignore_errors=True)


# Gangs and tasks


def test_every_rank_runs_and_knows_its_place(outcomes):
    assert outcomes["notes"] == [{"world_size": 2, "local_rank": rank, "job": "yes"} for rank in (0, 1)]


def test_a_mistake_on_a_worker_arrives_as_the_mistake_it_is(outcomes):
    assert outcomes["mistake"] == {"error": "UserError", "text": "shots: got 70, expected at most 60", "died": None}


def test_an_exception_on_a_worker_is_told_with_its_rank(outcomes):
    assert outcomes["exception"] == {
        "error": "GangError",
        "text": "rank 1: ZeroDivisionError: nothing to divide by",
        "died": False,
    }


def test_room_is_counted_by_memory_and_labels_too(outcomes):
    cores = max(2, os.cpu_count() or 1)
    assert outcomes["room"]["value"] == [2 * cores, 2 * cores, 0, 0]


def test_a_gang_that_finds_no_room_after_all_is_told_from_one_that_failed(outcomes):
    assert outcomes["no room"]["error"] == "NoRoom"
    assert outcomes["no room"]["text"].startswith("2 workers could not be started")


def test_a_killed_worker_is_told_from_one_that_raised(outcomes):
    assert outcomes["death"] == {"error": "GangError", "text": "rank 1 died", "died": True}


def test_tasks_run_elsewhere_and_their_results_are_in_order(outcomes):
    driver, *results = outcomes["tasks"]["value"]
    assert [item for item, _ in results] == [1, 2, 3]
    assert driver not in [pid for _, pid in results]


def test_a_mistake_in_a_task_arrives_as_the_mistake_it_is(outcomes):
    assert outcomes["mistaken task"] == {
        "error": "UserError",
        "text": "image 2: got a PDF, expected a JPEG",
        "died": None,
    }


def test_a_task_whose_worker_dies_is_tried_again(outcomes):
    assert outcomes["dying task"] == {"value": [2]}


# Jobs


def test_a_job_runs_with_its_environment_and_says_how_it_ended(stack_environment: Stack, submit):
    good, bad = submit("echo got $WORD", WORD="the-word"), submit("echo sorry >&2; exit 3")
    assert (ended(stack_environment, good), ended(stack_environment, bad)) == ("SUCCEEDED", "FAILED")
    assert "got the-word" in jobs.logs(stack_environment.jobs_address, good)
    assert "sorry" in jobs.logs(stack_environment.jobs_address, bad)


def test_a_job_that_the_cluster_does_not_know_is_gone(stack_environment: Stack):
    assert jobs.status(stack_environment.jobs_address, "never-submitted") == "GONE"


def test_a_cluster_says_what_it_runs_on(stack_environment: Stack):
    found = jobs.versions(stack_environment.jobs_address)
    assert found == jobs.Versions(ray=metadata.version("ray"), python=platform.python_version())


def test_a_job_that_is_stopped_can_put_its_things_in_order(stack_environment: Stack, submit):
    address = stack_environment.jobs_address
    job = submit("trap 'echo saved; exit 0' TERM; echo ready; while :; do sleep 0.2; done")
    wait_for(lambda: "ready" in jobs.logs(address, job).splitlines(), 300, "start of the job")
    assert jobs.status(address, job) == "RUNNING"
    jobs.stop(address, job)
    assert ended(stack_environment, job) == "STOPPED"
    assert "saved" in jobs.logs(address, job).splitlines()


def test_no_server_at_the_address_is_a_mistake_of_the_user(stack_environment: Stack):
    address = f"http://127.0.0.1:{free_ports(1)[0]}"
    for act in (jobs.check, lambda place: jobs.status(place, "any"), lambda place: jobs.stop(place, "any")):
        with pytest.raises(UserError, match=f"no Ray job server answers at {address}: expected an address such as"):
            act(address)


def test_a_wrong_token_is_a_mistake_of_the_user(stack: Stack, tmp_path: Path):
    """In a process of its own, since Ray reads the token once."""
    (tmp_path / "token").write_text("0" * 64)
    code = (
        "import sys; from cluster import jobs; from cluster.errors import UserError\n"
        "try: jobs.check(sys.argv[1])\n"
        "except UserError as error: print(error)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, stack.jobs_address],
        env={**os.environ, **stack.environment(), "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.startswith(
        f"the Ray cluster at {stack.jobs_address} refused our token: set RAY_AUTH_MODE=token and"
    )


def test_a_process_that_has_imported_ray_before_it_knew_the_token_is_let_in(stack: Stack):
    late = (
        "import json, sys, ray; from cluster import jobs; from cluster.environment import in_force\n"
        "with in_force(json.load(sys.stdin)): print(jobs.stop(sys.argv[1], 'nobody'))"
    )
    strangers = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    run = subprocess.run(
        [sys.executable, "-c", late, stack.jobs_address],
        input=json.dumps(stack.environment()),
        env={**strangers, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "nobody does not exist" in run.stderr
    assert "refused" not in run.stderr


def test_a_workflow_that_no_cluster_takes_leaves_nothing(stack_environment: Stack, s3_root: str):
    from pipeline import api
    from pipeline.settings import Settings

    address = f"http://127.0.0.1:{free_ports(1)[0]}"
    settings = Settings(root=s3_root, mlflow=stack_environment.mlflow_url, jobs=address, local=True)
    with pytest.raises(UserError, match=f"no Ray job server answers at {address}"):
        api.submit(small_workflow(), settings)
    assert list(settings.storage().list("")) == []
