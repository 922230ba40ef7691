"""The driver of a workflow: takes its lease and runs it. Also the entry point of the Ray job."""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType

import yaml

from cluster.connect import disconnect
from cluster.errors import UserError
from cluster.storage import Conflict, NotFound, Storage
from cluster.storage.enduring import Enduring
from cluster.tasks import warm_up
from pipeline.config import Workflow, parse_workflow
from pipeline.head import LeaseLost, LeaseWatch, read_head
from pipeline.identity import differences
from pipeline.ids import check_id, generate, note_named
from pipeline.logs import LogShipper
from pipeline.notify import Notifier, notifier_of, notifying
from pipeline.provenance import note_origin
from pipeline.record import EventLog, mark
from pipeline.runner import Runner
from pipeline.settings import Settings
from pipeline.status import silence
from pipeline.tracking import MlflowTracker
from pipeline.versions import check_pins

LEASE_SECONDS = 15.0
"""Time to live of a driver's leases, unless PATCHLINE_LEASE_SECONDS says otherwise."""


def create(storage: Storage, workflow: Workflow, workflow_id: str | None = None) -> str:
    """Give a workflow an id and store it; it can then be driven. Returns the id.

    The same workflow may be stored under the same id again. Raises UserError where the id is another workflow's,
    with the fields that differ.
    """
    workflow.check()
    workflow.check_imported()
    if workflow_id is not None:
        drivers = sum(1 for _ in storage.list(f"workflows/{check_id(workflow_id)}/drivers/"))
        note_named(storage, workflow_id, drivers)
    text = workflow.to_yaml().encode()
    if workflow_id is None:
        found = _store_as_new(storage, workflow.name, text)
    else:
        found = workflow_id
        try:
            storage.write_if_absent(_key(found), text)
        except Conflict:
            _check_same(found, read_workflow(storage, found), workflow)
    note_origin(storage, found)
    return found


def _key(workflow_id: str) -> str:
    return f"workflows/{workflow_id}/workflow.yaml"


def _store_as_new(storage: Storage, name: str, text: bytes) -> str:
    """Store a workflow under an id that no other one has, whoever stores one of its name in the same second."""
    while True:
        found = generate(name)
        # An equal text counts as this write's own, whose response was lost; so it is looked for before.
        if storage.stat(_key(found)) is not None:
            continue
        try:
            storage.write_if_absent(_key(found), text)
        except Conflict:
            continue
        return found


def _check_same(workflow_id: str, stored: Workflow, workflow: Workflow) -> None:
    """The text may differ where another version has written it out; what it says may not."""
    old, new = (yaml.safe_load(item.to_yaml()) for item in (stored, workflow))
    if lines := differences(old, new):
        more = f", and {len(lines) - 5} more" if len(lines) > 5 else ""
        raise UserError(
            f"--id {workflow_id} is another workflow's, which differs in {'; '.join(lines[:5])}{more}: "
            f"give another id, or go on with the stored one by `patchline resume {workflow_id}`"
        )


def read_workflow(storage: Storage, workflow_id: str) -> Workflow:
    """The workflow as it was submitted. Raises UserError where there is none of this id.

    It can be looked at also where stages of somebody's own cannot be imported: see `Workflow.check_imported`.
    """
    key = _key(workflow_id)
    try:
        text = storage.read(key).decode()
    except NotFound:
        raise UserError(
            f"no workflow '{workflow_id}' in {storage.url}; `patchline list` shows those there are"
        ) from None
    return parse_workflow(text, key, stored=True)


def drive(storage: Storage, workflow_id: str, *, mlflow: str, ray: bool, number: int | None = None) -> str:
    """Run a stored workflow to its end; returns its state. SIGTERM and SIGINT stop it after a checkpoint.

    `number` counts the drivers that were submitted for it.
    """
    if ray:
        # First of all: the processes start while the workflow is read and its state looked up.
        warm_up(_import_for_tasks)
    workflow = read_workflow(storage, workflow_id)
    workflow.check_imported()
    check_pins(workflow.pin)
    hurry = threading.Event()
    owner = f"{workflow_id}/{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}"
    with (
        LogShipper(storage, f"workflows/{workflow_id}/logs/driver-{owner.rsplit('/', 1)[1]}"),
        MlflowTracker(mlflow, storage, workflow_id, workflow, owner=owner, on_a_cluster=ray) as tracker,
    ):
        print(f"{owner}: code in {Path(__file__).parents[1]}, root {storage.url}, MLflow {mlflow}", flush=True)
        runner = Runner(
            Enduring(storage, _tell, hurry=hurry),
            workflow_id,
            workflow,
            owner=owner,
            ray=ray,
            tracker=tracker,
            number=number,
            lease_seconds=float(os.environ.get("PATCHLINE_LEASE_SECONDS", LEASE_SECONDS)),
        )
        told = notifying(storage, workflow_id, workflow.notify, _tell)
        with told, _stop_on_signals(runner.stop, hurry):
            return runner.run(lambda state: tracker.workflow_ended(state, runner.stop))


def _tell(line: str) -> None:
    print(line, flush=True)


def _import_for_tasks(_: None) -> None:
    """What most tasks need: images, their shards and the storage."""
    import stages.ingest.shard  # noqa: F401
    from cluster.storage import open_storage

    open_storage("s3://patchline")


def end_failed(storage: Storage, workflow_id: str, number: int, message: str) -> None:
    """Tell that a workflow has failed, where no driver holds it that could tell; `number` is its newest driver's."""
    EventLog(storage, workflow_id).append("workflow_ended", state="failed", driver=number, message=message)
    mark(storage, workflow_id, "failed")


def _tell_failed(storage: Storage, workflow_id: str, number: int, message: str) -> None:
    """What a user has to mend is told, so that nobody starts another driver before that is done."""
    try:
        if _is_driven(storage, workflow_id):
            return  # This one's mistake is in its log.
        if newest_driver(storage, workflow_id) == number:
            notifier = _notifier(storage, workflow_id)
            end_failed(storage, workflow_id, number, message)
            if notifier is not None:
                notifier.catch_up()
    except (OSError, UserError) as error:
        print(f"cannot tell so in {storage.url}: {error}", flush=True)


def _is_driven(storage: Storage, workflow_id: str) -> bool:
    """Whether a driver is at work: one that looks silent, perhaps to our clock alone, until its lease runs out here."""
    watch, first = LeaseWatch(), None
    while (found := read_head(storage, f"workflows/{workflow_id}")) is not None and found[0].state == "running":
        document, tag = found
        first = first or tag
        if tag != first or silence(storage, workflow_id) is None:
            return True
        if watch.stale(tag, document.ttl_seconds, longest_gap=max(1.0, document.ttl_seconds / 2)):
            return False
        time.sleep(min(1.0, document.ttl_seconds / 10))
    return False


def newest_driver(storage: Storage, workflow_id: str) -> int | None:
    """Number of the driver that was submitted last, or None where none was."""
    count = sum(1 for _ in storage.list(f"workflows/{workflow_id}/drivers/"))
    return count - 1 if count else None


def _notifier(storage: Storage, workflow_id: str) -> Notifier | None:
    """Where the mistake is the notifier's own, nobody can be told but in storage."""
    try:
        return notifier_of(storage, workflow_id, read_workflow(storage, workflow_id).notify, _tell)
    except UserError:
        return None


@contextmanager
def _stop_on_signals(stop: threading.Event, hurry: threading.Event) -> Iterator[None]:
    """Within it, the first SIGTERM or SIGINT asks for a checkpoint and a clean end; a second one ends at once."""
    if threading.current_thread() is not threading.main_thread():
        with nullcontext():
            yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            hurry.set()
            raise KeyboardInterrupt
        # Before it is told: a second one may come at once.
        stop.set()
        print(f"{signal.Signals(number).name}: saving a checkpoint, then stopping (again to stop at once)", flush=True)

    old = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def main() -> None:
    """`python -m pipeline.driver --root URL --mlflow URL --number N ID`, as submitted to a Ray cluster."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--root", required=True)
    parser.add_argument("--mlflow", required=True)
    parser.add_argument("--number", type=int, required=True)
    parser.add_argument("workflow_id")
    arguments = parser.parse_args()
    storage = Settings(root=arguments.root, mlflow=arguments.mlflow).storage()
    try:
        state = drive(storage, arguments.workflow_id, mlflow=arguments.mlflow, ray=True, number=arguments.number)
    except UserError as error:
        _tell_failed(storage, arguments.workflow_id, arguments.number, str(error))
        sys.exit(f"error: {error}")
    except LeaseLost as error:
        sys.exit(f"stopped: {error}")
    finally:
        disconnect()
    sys.exit(0 if state == "done" else 1)


if __name__ == "__main__":
    main()
