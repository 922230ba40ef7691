"""Which workflows have lost their driver: those whose lease ran out, and those whose submitted driver never began.

Storage says whether a lease is renewed, the cluster whether a driver that has not begun is still to come.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cluster import jobs
from cluster.errors import UserError
from cluster.storage import Storage
from pipeline.api import SENDING_SECONDS
from pipeline.driver import newest_driver
from pipeline.driver_numbers import is_supervised
from pipeline.head import HeadDocument, LeaseWatch, read_head
from pipeline.keeper import cancelled
from pipeline.record import EventLog, listed, mark
from pipeline.settings import Settings
from pipeline.status import StatusReader
from pipeline.supervise_note import read_note

UNKNOWN_SECONDS = 600.0
"""How long a submitted driver may be unknown to the cluster that is asked, in seconds: another one may have it."""
ENDED = ("FAILED", "SUCCEEDED", "GONE")
"""What the cluster says of a driver that will not begin any more."""


class ClusterAway(Exception):
    """The cluster does not answer, or does not take us, just now."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A driver that is lost, by its number, and how one sees it."""

    workflow: str
    driver: int
    reason: str
    cancelled: bool = False
    """Whether it was asked to stop before it was lost, so that nobody wants it back."""
    done: bool = False
    """Whether the workflow is done, and its driver had but to show things."""
    ended: HeadDocument | None = None
    """Where the workflow has ended otherwise, and its driver could not tell everybody: HEAD, which says how."""


class LossWatch:
    """Looks at the workflows of a root, again and again, and tells which have lost their driver.

    `report` is told once of each workflow that is left alone although its driver is gone.
    """

    def __init__(self, storage: Storage, settings: Settings, report: Callable[[str], None]) -> None:
        self._storage, self._settings, self._report = storage, settings, report
        self._leases: dict[str, LeaseWatch] = {}
        self._unknown: dict[tuple[str, int], float] = {}
        self._told: set[str] = set()
        self._others: set[tuple[str, int]] = set()
        """Drivers that somebody else sees to: their notes do not change."""

    def forget(self) -> None:
        """Begin anew: while nobody looked, or storage was away, drivers could show no sign of life."""
        self._leases.clear()

    def look(self) -> Iterator[Loss]:
        """The workflows whose driver is lost now. Raises OSError where storage is away, and ClusterAway."""
        for workflow, state in listed(self._storage).items():
            if state not in ("running", "submitted"):
                self._leases.pop(workflow, None)
                continue
            try:
                loss = self._look_at(workflow, state)
            except (ValueError, KeyError) as error:
                # One that cannot be read, such as one of a newer version, is no reason to leave the others.
                self.leave_alone(workflow, str(error))
                continue
            if loss is not None and self._ours(loss):
                yield loss

    def _ours(self, loss: Loss) -> bool:
        """Whether it is for a supervisor to answer: where somebody else sees to the driver, only what starts none."""
        if loss.cancelled or loss.ended is not None:
            return True
        if (loss.workflow, loss.driver) not in self._others:
            if is_supervised(self._storage, loss.workflow, loss.driver):
                return True
            self._others.add((loss.workflow, loss.driver))
        self.leave_alone(
            loss.workflow,
            f"{loss.reason}, and whoever submitted it, such as a RayJob, sees to it: `patchline resume "
            f"{loss.workflow}` takes it over",
        )
        return False

    def _look_at(self, workflow: str, state: str) -> Loss | None:
        found = read_head(self._storage, f"workflows/{workflow}")
        held = found is not None and found[0].state == "running"
        if found is not None and held and not self._stale(workflow, *found):
            return None
        driver = newest_driver(self._storage, workflow)
        if driver is None:
            # It ran in the foreground of somebody's machine, and never was a cluster's.
            return None
        if found is not None and state == "running" and not held:
            return self._unshown(workflow, driver, found[0])
        reason = self._reason(workflow, driver, state)
        if reason is None:
            return None
        cancelled = self._was_cancelled(workflow, found[0] if found else None, driver)
        return Loss(workflow=workflow, driver=driver, reason=reason, cancelled=cancelled)

    def _unshown(self, workflow: str, driver: int, head: HeadDocument) -> Loss | None:
        """Of a workflow that has ended, which the index does not say: its driver has still things to show, unless it
        was lost meanwhile."""
        job = self._job(workflow, driver)
        if job in ("PENDING", "RUNNING", "STOPPED") or (
            job == "GONE" and not self._gone_for_good(workflow, driver, "running")
        ):
            return None
        if listed(self._storage, workflow).get(workflow) != "running":
            # It has just said so, and then ended.
            return None
        if head.state != "done":
            # Whoever resumes it shows the rest too.
            reason = "its driver was lost before it had told its end"
            return Loss(workflow=workflow, driver=driver, reason=reason, ended=head)
        return Loss(
            workflow=workflow, driver=driver, reason="its driver was lost before MLflow had everything", done=True
        )

    def _stale(self, workflow: str, head: HeadDocument, tag: str) -> bool:
        return self._leases.setdefault(workflow, LeaseWatch()).stale(tag, head.ttl_seconds)

    def _reason(self, workflow: str, driver: int, state: str) -> str | None:
        """Why the driver is lost, or None where it is not, or was stopped by hand."""
        job = self._job(workflow, driver)
        if job == "STOPPED":
            self.leave_alone(workflow, "its driver's job was stopped by hand")
            return None
        if job == "GONE" and not self._gone_for_good(workflow, driver, state):
            return None
        if state == "running":
            return "its driver's lease ran out"
        return f"its driver ended before it began ({job})" if job in ENDED else None

    def _job(self, workflow: str, driver: int) -> str:
        assert self._settings.jobs is not None, "a cluster is named"
        try:
            return jobs.status(self._settings.jobs, f"{workflow}-d{driver}")
        except (UserError, RuntimeError) as error:
            raise ClusterAway(str(error)) from error

    def _gone_for_good(self, workflow: str, driver: int, state: str) -> bool:
        """Whether a driver that the cluster does not know is lost: it may be on its way, or another cluster's."""
        seconds = time.monotonic() - self._unknown.setdefault((workflow, driver), time.monotonic())
        if state == "running" and self._has_begun(workflow, driver):
            return True
        note = read_note(self._storage, workflow)
        ours = note is not None and note[0].lost == driver - 1 and note[0].address == self._settings.jobs
        return seconds > (SENDING_SECONDS if ours or self._settings.alone else UNKNOWN_SECONDS)

    def _has_begun(self, workflow: str, driver: int) -> bool:
        events = EventLog(self._storage, workflow).new_events()
        return any(event.type == "workflow_started" and event.data.get("driver") == driver for event in events)

    def _was_cancelled(self, workflow: str, head: HeadDocument | None, driver: int) -> bool:
        """Whether there is a request to cancel the driver that is lost, or the one that would come."""
        # A driver that ended by itself has answered the requests of its epoch.
        least = 1 if head is None else head.epoch + (head.state != "running")
        return cancelled(self._storage, workflow, epoch=least, driver=driver)

    def leave_alone(self, workflow: str, why: str) -> None:
        """Tell, once, that a workflow gets no new driver for now."""
        line = f"{workflow}: left alone: {why}"
        if line not in self._told:
            self._told.add(line)
            self._report(line)


def tell_end(storage: Storage, workflow: str, driver: int, head: HeadDocument) -> None:
    """Tell of an end that HEAD has and the driver was lost before telling of: by an event, if it was, and the index."""
    reader = StatusReader(storage, workflow, [])
    reader.update()
    if reader.status.state == "running":
        log = EventLog(storage, workflow)
        log.epoch = head.epoch
        log.append("workflow_ended", state=head.state, driver=driver, message="its driver was lost at its end")
    mark(storage, workflow, head.state, head.epoch)


def progress(storage: Storage, workflow: str) -> tuple[int, int, int]:
    """How far a workflow has got: stages that are done; then, of those that run, updates in checkpoints, and parts.

    Of two moments the one with the greater tuple is further.
    """
    reader = StatusReader(storage, workflow, [])
    reader.update()
    stages = list(reader.status.stages.values())
    done = sum(stage.outcome in ("done", "reused") for stage in stages)
    folders = [stage.folder for stage in stages if stage.outcome == "running" and stage.folder]
    heads = [found[0] for folder in folders if (found := read_head(storage, folder)) is not None]
    updates = sum(head.checkpoint.update for head in heads if head.checkpoint is not None)
    return done, updates, sum(1 for folder in folders for _ in storage.list(f"{folder}/parts/"))
