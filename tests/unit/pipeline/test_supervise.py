"""Workflows whose driver is lost go on by themselves; all others are left alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.storage import Storage
from pipeline import api, losses, supervise
from pipeline.cancelling import LOST
from pipeline.config import Workflow
from pipeline.driver import create
from pipeline.driver_numbers import take_number
from pipeline.head import Head
from pipeline.keeper import request_cancel
from pipeline.kinds import KINDS
from pipeline.record import EventLog, listed, mark
from pipeline.runner import Runner
from pipeline.settings import Settings
from pipeline.status import StatusReader, states
from pipeline.supervise import Supervisor
from pipeline.supervise_note import FORMAT, Note, claim, read_note
from tests.unit.pipeline.interposed import interposed
from tests.unit.pipeline.job_server import JobServer
from tests.unit.pipeline.test_runner import Silent
from tests.unit.pipeline.toys import Source, Upper

LEASE = 0.2
FLOW = Workflow(name="toy", stages={"first": Source(), "second": Upper(text="first")})


@pytest.fixture
def server() -> Iterator[JobServer]:
    server = JobServer()
    with server.running():
        yield server


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "BACKOFF_SECONDS", 0.01)
    # As if they shipped: no code goes along.
    for stage in FLOW.stages.values():
        monkeypatch.setitem(KINDS, stage.kind, type(stage))


@pytest.fixture
def settings(server: JobServer, tmp_path: Path) -> Settings:
    return Settings(
        root=f"file://{tmp_path}/root", mlflow="http://mlflow:5000", jobs=server.url, local=True, alone=True
    )


@pytest.fixture
def storage(settings: Settings) -> Storage:
    return settings.storage()


def submitted(storage: Storage, server: JobServer, state: str = "PENDING") -> str:
    """A workflow after `submit`, before its driver's first line; its id."""
    name = create(storage, FLOW)
    number = take_number(storage, name)
    EventLog(storage, name).append("driver_submitted", number=number)
    mark(storage, name, "submitted")
    server.states[f"{name}-d{number}"] = state
    return name


def begun(storage: Storage, server: JobServer, job: str = "GONE", ttl: float = LEASE) -> tuple[str, Head]:
    """A workflow whose driver has begun and shows no sign of life after that; its id and its lease."""
    name = submitted(storage, server, "RUNNING")
    head = Head.acquire(storage, f"workflows/{name}", "lost", ttl=ttl)
    assert head is not None
    mark(storage, name, "running", head.epoch)
    EventLog(storage, name).append("workflow_started", owner="lost", driver=0)
    server.states[f"{name}-d0"] = job
    if job == "GONE":
        del server.states[f"{name}-d0"]
    return name, head


def drive(storage: Storage, name: str, number: int, flow: Workflow = FLOW) -> str:
    """What the submitted driver does."""
    runner = Runner(
        storage, name, flow, owner=f"driver {number}", ray=False, tracker=Silent(), number=number, lease_seconds=LEASE
    )
    return runner.run()


def watch(supervisor: Supervisor, until: Callable[[], object], seconds: float = 120) -> None:
    """Rounds until something is so."""
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, "it never came to be so"
        supervisor.round()
        time.sleep(0.02)


def watch_for(supervisor: Supervisor, seconds: float = 4 * LEASE) -> None:
    """Rounds for longer than a lease takes to run out."""
    ended = time.monotonic() + seconds
    watch(supervisor, lambda: time.monotonic() > ended)


def told(storage: Storage, name: str) -> tuple[str, str]:
    reader = StatusReader(storage, name, [])
    reader.update()
    return reader.status.state, reader.status.message


def test_a_workflow_whose_lease_ran_out_is_finished_by_a_new_driver(server, settings, storage):
    name, _ = begun(storage, server)
    lines: list[str] = []
    supervisor = Supervisor(settings, report=lines.append)
    watch(supervisor, lambda: server.submitted)
    assert server.submitted == [f"{name}-d1"]
    assert lines == [f"{name}: its driver's lease ran out: submitted driver 1 (1 of 8)"]
    server.states[f"{name}-d1"] = "RUNNING"
    assert drive(storage, name, 1) == "done"
    watch_for(supervisor)
    assert (server.submitted, listed(storage)) == ([f"{name}-d1"], {name: "done"})


def test_a_driver_that_renews_its_lease_is_left_alone(server, settings, storage):
    _, head = begun(storage, server, "RUNNING")
    ended = time.monotonic() + 8 * LEASE

    def renewed() -> bool:
        """Once before each look, however long it takes until then."""
        head.renew()
        return time.monotonic() > ended

    watch(Supervisor(settings), renewed)
    assert server.submitted == []


@pytest.mark.parametrize("state", ["FAILED", "SUCCEEDED"])
def test_a_driver_that_died_before_it_began_is_replaced(server, settings, storage, state):
    name = submitted(storage, server)
    supervisor = Supervisor(settings)
    watch_for(supervisor)
    assert server.submitted == []
    server.states[f"{name}-d0"] = state
    watch(supervisor, lambda: server.submitted)
    watch_for(supervisor)
    assert server.submitted == [f"{name}-d1"]


def test_a_driver_that_the_cluster_does_not_know_may_be_another_clusters(server, settings, storage, monkeypatch):
    name = submitted(storage, server)
    del server.states[f"{name}-d0"]
    elsewhere = Settings(root=settings.root, mlflow="", jobs=server.url, local=True)
    supervisor = Supervisor(elsewhere)
    watch_for(supervisor)
    assert server.submitted == []
    monkeypatch.setattr(losses, "UNKNOWN_SECONDS", 0.1)
    watch(supervisor, lambda: server.submitted)
    # Of the driver that it submitted itself it knows which cluster has it.
    monkeypatch.setattr(losses, "UNKNOWN_SECONDS", 600)
    monkeypatch.setattr(losses, "SENDING_SECONDS", 0.1)
    del server.states[f"{name}-d1"]
    watch(supervisor, lambda: len(server.submitted) == 2)


def ended(state: str) -> Callable[[Storage, JobServer], object]:
    def act(storage: Storage, server: JobServer) -> None:
        name, head = begun(storage, server)
        head.release(state)
        mark(storage, name, state, head.epoch)

    return act


def failed_by_its_user(storage: Storage, server: JobServer) -> None:
    name = submitted(storage, server, "FAILED")
    flow = Workflow(name="toy", stages={"first": Source(), "second": Upper(text="first", mistake="lr=-1")})
    assert drive(storage, name, 0, flow) == "failed"


def cancelled(storage: Storage, server: JobServer) -> None:
    request_cancel(storage, begun(storage, server)[0])


def cancelled_before_it_began(storage: Storage, server: JobServer) -> None:
    request_cancel(storage, submitted(storage, server, "FAILED"))


def stopped_by_hand(storage: Storage, server: JobServer) -> None:
    begun(storage, server, "STOPPED")


def in_the_foreground(storage: Storage, server: JobServer) -> None:
    name = create(storage, FLOW)
    head = Head.acquire(storage, f"workflows/{name}", "lost", ttl=LEASE)
    assert head is not None
    mark(storage, name, "running", head.epoch)


LEFT_ALONE = [
    *(ended(state) for state in ("done", "failed", "stopped")),
    *(failed_by_its_user, stopped_by_hand, in_the_foreground),
]


@pytest.mark.parametrize("act", LEFT_ALONE)
def test_what_has_ended_or_was_ended_is_left_alone(server, settings, storage, act):
    act(storage, server)
    lines: list[str] = []
    watch_for(Supervisor(settings, report=lines.append))
    assert server.submitted == []
    assert len(lines) <= 1


def test_what_a_lost_driver_had_not_shown_yet_is_shown_by_the_next_one(server, settings, storage):
    name, head = begun(storage, server, "RUNNING")
    head.release("done")
    lines: list[str] = []
    supervisor = Supervisor(settings, report=lines.append)
    watch_for(supervisor)
    assert (server.submitted, listed(storage)) == ([], {name: "running"})
    server.states[f"{name}-d0"] = "FAILED"
    watch(supervisor, lambda: server.submitted)
    assert lines == [f"{name}: its driver was lost before MLflow had everything: submitted driver 1 (1 of 8)"]
    server.states[f"{name}-d1"] = "RUNNING"
    assert drive(storage, name, 1) == "done"
    assert listed(storage) == {name: "done"}


def test_a_driver_that_a_rayjob_sees_to_gets_no_second_one_here_until_somebody_takes_it_over(server, settings, storage):
    """Its cluster is one of its own, of which this one's job server knows nothing: a second set of GPUs would start."""
    name, _ = begun(storage, server)
    storage.delete(f"workflows/{name}/drivers/0000")
    assert take_number(storage, name, supervised=False) == 0
    lines: list[str] = []
    supervisor = Supervisor(settings, report=lines.append)
    watch(supervisor, lambda: lines)
    watch_for(supervisor)
    assert server.submitted == []
    assert lines == [
        f"{name}: left alone: its driver's lease ran out, and whoever submitted it, such as a RayJob, sees to it: "
        f"`patchline resume {name}` takes it over"
    ]
    assert listed(storage) == {name: "running"}
    api.resume(name, settings)
    server.states[f"{name}-d1"] = "FAILED"
    watch(supervisor, lambda: server.submitted == [f"{name}-d1", f"{name}-d2"])


def test_an_unsupervised_workflow_that_was_cancelled_is_ended(server, settings, storage):
    name = api.submit(FLOW, settings, supervised=False)
    request_cancel(storage, name)
    server.states[f"{name}-d0"] = "FAILED"
    watch(Supervisor(settings), lambda: listed(storage)[name] == "stopped")
    assert server.submitted == [f"{name}-d0"]


@pytest.mark.parametrize("supervised", [True, False])
def test_whose_a_lost_driver_is_was_said_when_it_was_submitted(server, settings, storage, supervised):
    name = api.submit(FLOW, settings, supervised=supervised)
    server.states[f"{name}-d0"] = "FAILED"
    supervisor = Supervisor(settings)
    if supervised:
        watch(supervisor, lambda: len(server.submitted) > 1)
    watch_for(supervisor)
    assert server.submitted == [f"{name}-d0", f"{name}-d1"][: 1 + supervised]


@pytest.mark.parametrize("state", ["failed", "stopped"])
def test_an_end_that_a_lost_driver_could_not_tell_the_index_is_told(server, settings, storage, state):
    name, head = begun(storage, server, "FAILED")
    head.release(state)
    # The verbs do not wait for that.
    assert told(storage, name)[0] == "running"
    assert api.state_of(storage, name, settings) == state
    watch(Supervisor(settings), lambda: listed(storage) == {name: state})
    assert server.submitted == []
    assert told(storage, name) == (state, "its driver was lost at its end")


@pytest.mark.parametrize("act", [cancelled, cancelled_before_it_began])
def test_what_was_cancelled_before_its_driver_was_lost_is_ended(server, settings, storage, act):
    act(storage, server)
    (name,) = listed(storage)
    lines: list[str] = []
    watch(Supervisor(settings, report=lines.append), lambda: listed(storage)[name] == "stopped")
    assert server.submitted == []
    assert lines[-1].endswith("and it was cancelled: ended")
    reader = StatusReader(storage, name, [])
    reader.update()
    assert (reader.status.state, reader.status.message) == ("stopped", LOST)
    assert states(storage) == {name: "stopped"}


def test_what_was_cancelled_and_resumed_is_watched_again(server, settings, storage):
    name, _ = begun(storage, server)
    request_cancel(storage, name)
    number = take_number(storage, name)
    server.states[f"{name}-d{number}"] = "FAILED"
    Head.acquire(storage, f"workflows/{name}", "resumed", ttl=LEASE)
    watch(Supervisor(settings), lambda: server.submitted)
    assert server.submitted == [f"{name}-d{number + 1}"]


def test_a_driver_that_is_submitted_while_the_lost_one_is_cancelled_is_cancelled_too(server, settings, storage):
    name, _ = begun(storage, server)
    met: list[str] = []

    def before(number: int, call: str, key: str) -> None:
        # The supervisor has looked, and the new driver's number is not taken yet.
        if call == "write_if_absent" and "/drivers/" in key and not met:
            met.append(key)
            request_cancel(storage, name)

    supervisor = Supervisor(settings)
    supervisor._storage, _ = interposed(storage, before)
    watch(supervisor, lambda: server.submitted)
    assert met == [f"workflows/{name}/drivers/0001"]
    assert drive(storage, name, 1) == "stopped"


def test_of_two_supervisors_one_submits(server, settings, storage):
    names = [begun(storage, server)[0] for _ in range(3)]
    stop = threading.Event()

    def look() -> None:
        supervisor = Supervisor(settings)
        while not stop.is_set():
            supervisor.round()

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 120
    while len(server.submitted) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(4 * LEASE)
    stop.set()
    for thread in threads:
        thread.join()
    assert sorted(server.submitted) == sorted(f"{name}-d1" for name in names)


def test_a_supervisor_that_ended_between_its_note_and_the_driver_is_replaced(server, settings, storage, monkeypatch):
    name, _ = begun(storage, server)
    assert claim(storage, name, Note(lost=0, tries=1, progress=(0, 0, 0), address=server.url), None)
    supervisor = Supervisor(settings)
    watch_for(supervisor)
    assert server.submitted == []
    monkeypatch.setattr(supervise, "CLAIM_SECONDS", 0.1)
    watch(supervisor, lambda: server.submitted)
    found = read_note(storage, name)
    assert found is not None
    assert (found[0].lost, found[0].tries) == (0, 2)


def fail_all(server: JobServer) -> None:
    server.states.update(dict.fromkeys(server.states, "FAILED"))


def test_the_budget_is_finite_and_outlives_the_supervisor(server, settings, storage):
    name = submitted(storage, server, "FAILED")
    for number in range(1, 4):
        # Each of them is a supervisor of its own.
        watch(Supervisor(settings, budget=3), lambda number=number: len(server.submitted) == number)
        fail_all(server)
    lines: list[str] = []
    supervisor = Supervisor(settings, budget=3, report=lines.append)
    watch(supervisor, lambda: lines)
    assert "3 more drivers were lost before the workflow got on" in lines[0]
    state, message = told(storage, name)
    assert (state, listed(storage)[name]) == ("failed", "failed")
    assert f"`patchline resume {name}`" in message
    watch_for(supervisor)
    assert len(server.submitted) == 3
    # Whoever resumes it gives the budget back.
    api.submit_driver(storage, name, settings)
    fail_all(server)
    watch(supervisor, lambda: len(server.submitted) == 5)


def test_a_workflow_that_gets_on_earns_its_budget_back(server, settings, storage):
    name = submitted(storage, server, "FAILED")
    supervisor = Supervisor(settings, budget=1)
    watch(supervisor, lambda: server.submitted)
    half = Workflow(name="toy", stages={"first": Source()})
    assert drive(storage, name, 1, half) == "done"
    # As if this driver had more to do, and died.
    mark(storage, name, "submitted")
    fail_all(server)
    watch(supervisor, lambda: len(server.submitted) == 2)
    fail_all(server)
    watch(supervisor, lambda: told(storage, name)[0] == "failed")
    assert len(server.submitted) == 2


def test_a_cluster_that_is_away_is_waited_for_and_costs_no_budget(server, settings, storage, monkeypatch):
    name, _ = begun(storage, server)
    lines: list[str] = []
    supervisor = Supervisor(settings, report=lines.append)
    server.token = "secret"
    watch(supervisor, lambda: lines)
    watch_for(supervisor)
    assert len(lines) == 1
    assert lines[0].startswith(f"waiting for the cluster: the Ray cluster at {server.url} refused our token")
    assert read_note(storage, name) is None
    server.token = None
    watch(supervisor, lambda: server.submitted)
    assert "the cluster is back" in lines


def test_a_cluster_that_goes_away_in_between_leaves_the_workflow_to_the_next_try(
    server, settings, storage, monkeypatch
):
    monkeypatch.setattr(losses, "SENDING_SECONDS", 0.1)
    name, _ = begun(storage, server)
    supervisor = Supervisor(settings)
    server.refusing = "the head is about to end"
    watch(supervisor, lambda: read_note(storage, name))
    watch_for(supervisor)
    assert listed(storage) == {name: "submitted"}
    server.refusing = None
    watch(supervisor, lambda: server.submitted)


def test_storage_that_is_away_is_waited_for_and_takes_nobodys_lease(server, settings, storage, tmp_path):
    _, head = begun(storage, server, "RUNNING")
    lines: list[str] = []
    supervisor = Supervisor(settings, report=lines.append)
    supervisor.round()
    root, kept = tmp_path / "root", tmp_path / "kept"
    root.rename(kept)
    root.symlink_to(root)
    watch(supervisor, lambda: lines)
    # Longer than a lease: its driver cannot renew it.
    watch_for(supervisor)
    assert len(lines) == 1
    assert lines[0].startswith("waiting for storage: ")
    root.unlink()
    kept.rename(root)
    supervisor.round()
    head.renew()
    assert server.submitted == []
    assert lines[1:] == ["storage is back"]


def test_one_that_cannot_be_read_is_told_once_and_the_others_are_watched(server, settings, storage):
    unread, _ = begun(storage, server)
    body = storage.read(f"workflows/{unread}/HEAD.json").replace(b'"format":2', b'"format":99')
    storage.write(f"workflows/{unread}/HEAD.json", body)
    newer, _ = begun(storage, server)
    storage.write(f"workflows/{newer}/SUPERVISE.json", b'{"format": %d, "moon": "full"}' % (FORMAT + 1))
    name, _ = begun(storage, server)
    lines: list[str] = []
    supervisor = Supervisor(settings, report=lines.append)
    watch(supervisor, lambda: server.submitted)
    watch_for(supervisor)
    assert server.submitted == [f"{name}-d1"]
    assert sum(unread in line and "install a newer patchline" in line for line in lines) == 1
    assert sum(newer in line and "install a newer patchline" in line for line in lines) == 1


def test_a_workflow_that_is_done_never_counts_as_failed_for_want_of_mlflow(server, settings, storage):
    name, head = begun(storage, server, "FAILED")
    head.release("done")
    supervisor = Supervisor(settings, budget=1)
    watch(supervisor, lambda: server.submitted)
    server.states[f"{name}-d1"] = "FAILED"
    mark(storage, name, "running", head.epoch)
    watch(supervisor, lambda: listed(storage) == {name: "done"})
    assert api.state_of(storage, name, settings) != "failed"


@pytest.mark.parametrize("lost", ["after its number", "after it was listed", "before its number"])
def test_an_id_whose_submission_was_lost_on_the_way_can_be_submitted_again(
    server, settings, storage, monkeypatch, lost
):
    monkeypatch.setattr(api, "SENDING_SECONDS", 0.1)
    elsewhere = replace(settings, alone=False)
    name = create(storage, FLOW, "nightly")
    mark(storage, name, "submitted")
    number = None
    if lost != "before its number":
        number = take_number(storage, name)
    if lost == "after it was listed":
        EventLog(storage, name).append("driver_submitted", number=number)
    found = api.submit_once(FLOW, elsewhere, workflow_id=name)
    expected = 0 if number is None else 1
    assert (found.driver, server.submitted) == (expected, [f"nightly-d{expected}"])
    # What the cluster has taken is not sent again.
    assert api.submit_once(FLOW, elsewhere, workflow_id=name).driver is None
    assert len(server.submitted) == 1


def test_each_round_is_a_sign_of_life_also_while_all_is_away(settings, monkeypatch):
    monkeypatch.setattr(supervise, "POLL_SECONDS", 0.01)
    told: list[str] = []
    supervisor = Supervisor(replace(settings, jobs="http://127.0.0.1:9"), report=told.append)
    stop, rounds = threading.Event(), []

    def beat() -> None:
        rounds.append(1)
        if len(rounds) == 3:
            stop.set()

    supervisor.run(stop, beat)
    assert len(rounds) == 3
