"""Watches a root, and starts a new driver for each workflow that has lost its own.

It decides little itself: the lease orders drivers, so that one too many costs a process and harms nothing. What it adds
is that a loss is answered once, by whichever supervisor is first; that answers wait longer and longer, and end, where
a workflow does not get on; and that it waits for storage and for the cluster as long as they are away.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from cluster.errors import UserError
from pipeline.api import jobs_address, submit_driver
from pipeline.cancelling import end_lost
from pipeline.driver import end_failed, read_workflow
from pipeline.head import LeaseWatch
from pipeline.keeper import cancelled, request_cancel
from pipeline.losses import ClusterAway, Loss, LossWatch, progress, tell_end
from pipeline.notify import Notifier, notifier_of
from pipeline.record import EventLog, mark
from pipeline.settings import Settings
from pipeline.supervise_note import Note, claim, read_note, spent
from pipeline.telling import Teller

BUDGET = 8
"""Drivers that are submitted for a workflow that does not get on."""
BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 10.0, 600.0
"""Wait before the second re-submission in a row; it doubles with every further one. The first one follows at once."""
CLAIM_SECONDS = 60.0
"""A loss that somebody took in hand so long ago, in seconds, and for which no driver came, is anybody's again."""
POLL_SECONDS = 5.0
BUSY_SHARE = 4
"""A round is followed by a pause of so many times its own length, where that is longer than POLL_SECONDS."""
AT_ONCE = 4
"""Drivers that are submitted in one round: after a cluster's loss, all of its workflows would start in one moment."""


@dataclass(kw_only=True)
class _Case:
    """A loss, as far as it is known: since when on our clock, what was spent before it, and how far it had got."""

    since: float = field(default_factory=time.monotonic)
    tries: int
    reached: tuple[int, int, int]


class Supervisor:
    """Re-submits lost workflows of the settings' root to their cluster. Raises UserError where none is named."""

    def __init__(
        self, settings: Settings, *, budget: int = BUDGET, report: Callable[[str], None] = lambda line: None
    ) -> None:
        jobs_address(settings)
        self._settings, self._budget, self._report = settings, budget, report
        self._storage = settings.storage()
        self._losses = LossWatch(self._storage, settings, report)
        self._claims: dict[str, LeaseWatch] = {}
        self._cases: dict[tuple[str, int], _Case] = {}
        self._waits_for: str | None = None
        self._teller = Teller(report)

    def run(self, stop: threading.Event, beat: Callable[[], None] = lambda: None) -> None:
        """Look, act and pause until `stop` is set; `beat` is called after each round, also where all is away."""
        try:
            self._run(stop, beat)
        finally:
            self.close()

    def close(self) -> None:
        """Wait for the messages that are on their way."""
        self._teller.close()

    def _run(self, stop: threading.Event, beat: Callable[[], None]) -> None:
        pause, ended = 0.0, time.monotonic()
        while not stop.wait(pause):
            began = time.monotonic()
            if began - ended > 2 * pause + POLL_SECONDS:
                # This process stood still, and drivers may have too, with the machine.
                self._losses.forget()
            self.round()
            beat()
            ended = time.monotonic()
            pause = max(POLL_SECONDS, BUSY_SHARE * (ended - began))

    def round(self) -> None:
        """Look at every workflow once, and answer the losses that are due. Storage and cluster may be away."""
        try:
            self._answer_losses()
        except ClusterAway as error:
            self._wait_for("the cluster", str(error))
        except (OSError, UserError) as error:
            # No driver could renew its lease meanwhile.
            self._losses.forget()
            self._wait_for("storage", str(error))
        else:
            if self._waits_for is not None:
                self._report(f"{self._waits_for} is back")
            self._waits_for = None

    def _wait_for(self, what: str, why: str) -> None:
        if self._waits_for != what:
            self._report(f"waiting for {what}: {why}")
        self._waits_for = what

    def _answer_losses(self) -> None:
        submitted = 0
        for loss in self._losses.look():
            try:
                submitted += self._answer(loss)
            except (ValueError, KeyError) as error:
                self._losses.leave_alone(loss.workflow, str(error))
            if submitted == AT_ONCE:
                return

    def _answer(self, loss: Loss) -> bool:
        """Submit a driver where it is due, and nobody else does; whether one was."""
        if loss.cancelled:
            told = self._notifier(loss.workflow)
            if end_lost(self._storage, loss.workflow):
                self._tell(told)
            self._report(f"{loss.workflow}: {loss.reason}, and it was cancelled: ended")
            return False
        found = read_note(self._storage, loss.workflow)
        note, tag = found if found is not None else (None, None)
        if note is not None and tag is not None and self._in_hand(loss, note, tag):
            return False
        case = self._case(loss, note)
        if time.monotonic() - case.since < _backoff(case.tries):
            return False
        given_up = loss.ended is not None or case.tries >= self._budget
        if not given_up:
            # Before anything is claimed: another supervisor may have what this one lacks.
            read_workflow(self._storage, loss.workflow).check_imported()
        mine = Note(
            lost=loss.driver,
            tries=case.tries + (not given_up),
            progress=case.reached,
            address=jobs_address(self._settings),
            given_up=given_up,
        )
        if not claim(self._storage, loss.workflow, mine, tag):
            return False
        self._cases.pop((loss.workflow, loss.driver), None)
        if loss.ended is not None:
            told = self._notifier(loss.workflow)
            tell_end(self._storage, loss.workflow, loss.driver, loss.ended)
            self._tell(told)
            return False
        if given_up:
            self._give_up(loss, case.tries)
            return False
        self._submit(loss, mine.tries)
        return True

    def _in_hand(self, loss: Loss, note: Note, tag: str) -> bool:
        """Whether a supervisor, this one or another, is about to answer this loss."""
        watch = self._claims.setdefault(loss.workflow, LeaseWatch())
        stale = watch.stale(tag, CLAIM_SECONDS)
        return note.lost > loss.driver or (note.lost == loss.driver and not stale)

    def _case(self, loss: Loss, note: Note | None) -> _Case:
        key = (loss.workflow, loss.driver)
        if key not in self._cases:
            reached = progress(self._storage, loss.workflow)
            self._cases[key] = _Case(tries=spent(note, loss.driver, reached), reached=reached)
        return self._cases[key]

    def _submit(self, loss: Loss, tries: int) -> None:
        log, told = EventLog(self._storage, loss.workflow), self._notifier(loss.workflow)
        log.append("driver_lost", number=loss.driver, reason=loss.reason, tries=tries, budget=self._budget)
        try:
            number = submit_driver(self._storage, loss.workflow, self._settings, again=True)
        except UserError as error:
            raise ClusterAway(str(error)) from error
        self._pass_on_cancel(loss)
        self._report(f"{loss.workflow}: {loss.reason}: submitted driver {number} ({tries} of {self._budget})")
        self._tell(told)

    def _pass_on_cancel(self, loss: Loss) -> None:
        """Where the lost driver was cancelled since it was looked at, the request may not name the new one."""
        if cancelled(self._storage, loss.workflow, epoch=sys.maxsize, driver=loss.driver):
            with suppress(UserError):
                request_cancel(self._storage, loss.workflow)

    def _give_up(self, loss: Loss, tries: int) -> None:
        told = self._notifier(loss.workflow)
        if loss.done:
            mark(self._storage, loss.workflow, "done")
            self._report(f"{loss.workflow} is done: {loss.reason}: `patchline resume {loss.workflow}` sends the rest")
            self._tell(told)
            return
        message = (
            f"given up: {loss.reason}, and {tries} more drivers were lost before the workflow got on: "
            f"look for the cause in `patchline logs {loss.workflow}`, then `patchline resume {loss.workflow}`"
        )
        end_failed(self._storage, loss.workflow, loss.driver, message)
        self._report(f"{loss.workflow}: {message}")
        self._tell(told)

    def _notifier(self, workflow_id: str) -> Notifier | None:
        """Before anything is told in storage that it is to send on."""
        try:
            config = read_workflow(self._storage, workflow_id).notify
            return notifier_of(self._storage, workflow_id, config, self._report)
        except (ValueError, KeyError) as error:
            self._report(f"{workflow_id}: nobody is told what happens: {error}")
            return None

    def _tell(self, notifier: Notifier | None) -> None:
        if notifier is not None:
            self._teller.send(notifier)


def _backoff(tries: int) -> float:
    """Seconds from a loss to its answer, after so many answers that led nowhere."""
    return 0.0 if tries == 0 else min(LONGEST_BACKOFF_SECONDS, BACKOFF_SECONDS * 2 ** (tries - 1))
