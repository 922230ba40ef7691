"""What happens to a cluster of several machines while a workflow trains on it, and what is to be told of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cluster.storage import Storage
from pipeline.commands.shown import read_status
from pipeline.display import figures
from pipeline.settings import Settings
from pipeline.status import StatusReader
from tests.chaos import late
from tests.chaos.machines import ENDLESS, Machines
from tests.integration.flows import head, wait_for

END_SECONDS = 420.0
ENDED = ("done", "failed", "stopped")
AWAY_SECONDS = 5.0
WORKER = ("ray::", "TrainWorker")
GAVE_UP = "gave up: its machine, machine-., has reached neither"
NARROW = 4.0
"""Megabits per second at which an update takes as long as its gradients are under way, however busy the machine is."""
SLOWED = "of its usual speed"
DRIVER_LOST = "its driver was lost"
LOST_WITH_RANKS = r"machine [\d.]+ is lost, and with it rank"


@dataclass(kw_only=True)
class Run:
    """A workflow under way on the machines."""

    machines: Machines
    settings: Settings
    workflow_id: str
    storage: Storage
    folder: str = ""

    def wait_for(self, condition: Callable[[], Any], what: str) -> Any:
        """The first true value of `condition`, which is to come while the workflow runs."""
        reader = StatusReader(self.storage, self.workflow_id, [])

        def look() -> Any:
            # Before the condition, which may have come with the workflow's end.
            reader.update()
            found, state = condition(), reader.status.state
            assert found or state not in ENDED, f"no {what}: the workflow is {state}: {reader.status.message}"
            return found

        return wait_for(look, END_SECONDS, what)

    def with_driver(self) -> int:
        """The machine of the driver, once there is one."""
        words = ("pipeline.driver", self.workflow_id)
        return self.wait_for(lambda: self.machines.with_process(*words), "driver")[0]

    def with_rank(self) -> int:
        """A machine on which a rank trains, and no driver, once there is one."""

        def found() -> int | None:
            return next((n for n in self.machines.with_process(*WORKER) if n and n != self.with_driver()), None)

        return self.wait_for(found, "rank apart from the driver")

    def holding(self) -> int | None:
        """The machine whose rank holds a commit back, where there is one."""
        numbers = range(1, self.machines.count + 1)
        return next((n for n in numbers if (self.machines.own_folder(n) / late.HELD).exists()), None)

    def shown(self) -> str:
        """How far pretraining is, as `status` has it."""
        return figures(read_status(self.workflow_id, self.settings).stages["pretrain"])

    def pace(self) -> float | None:
        """The speed of pretraining as a part of the usual one, once it is known."""
        return read_status(self.workflow_id, self.settings).stages["pretrain"].pace

    @contextmanager
    def another_attempt(self) -> Iterator[None]:
        """At the end of what is done within it, wait until an attempt trains that began after its beginning."""
        attempt = head(self.storage, self.folder).attempt
        yield
        self.wait_for(lambda: head(self.storage, self.folder).attempt > attempt, "another attempt")


def slow(run: Run) -> str:
    """The link of a machine with a rank becomes slow for a while: `status` has to say so, and then no longer."""
    number = run.with_rank()
    run.wait_for(lambda: run.pace() is not None, "usual speed")
    run.machines.slow(number, megabits=NARROW / 20)
    run.wait_for(lambda: SLOWED in run.shown(), f"status that says '{SLOWED}'")
    run.machines.mend(number)
    run.wait_for(lambda: SLOWED not in run.shown(), f"status that says '{SLOWED}' no longer")
    return f"machine {number} was slow for a while"


def loss(run: Run) -> str:
    """The power of a machine with a rank is cut."""
    number = run.with_rank()
    run.machines.lose(number)
    return f"machine {number} was lost"


def partition(run: Run) -> str:
    """The cable of a machine with a rank is pulled, and plugged in again when another attempt trains without it."""
    number = run.with_rank()
    with run.another_attempt():
        run.machines.part(number)
    time.sleep(2)
    run.machines.join(number)
    return f"machine {number} was cut off for a while"


def cut(run: Run) -> str:
    """Rank 0's machine reaches no other machine any more, but storage, and goes on to commit a checkpoint there."""
    folders = [run.machines.own_folder(number) for number in range(1, run.machines.count + 1)]
    for folder in folders:
        (folder / late.HOLD).touch()
    try:
        number = run.wait_for(run.holding, "commit that is held back")
    finally:
        # Those of the attempts to come are not.
        for folder in folders:
            (folder / late.HOLD).unlink()
    before = head(run.storage, run.folder).checkpoints
    with run.another_attempt():
        run.machines.cut(number)
    (run.machines.own_folder(number) / late.GO_ON).touch()
    outcome = run.machines.own_folder(number) / late.OUTCOME
    # The workflow may end meanwhile: it does not need this rank any more.
    wait_for(outcome.exists, END_SECONDS, "commit by a rank that was cut off")
    held = (run.machines.own_folder(number) / late.HELD).read_text()
    names = [item.prefix for item in head(run.storage, run.folder).checkpoints]
    assert outcome.read_text() == "LeaseLost", outcome.read_text()
    assert held not in names, f"{held}, of a rank that was cut off, became visible after {before}"
    _back(run.machines, number)
    return f"machine {number}, of rank 0, reached storage alone, and was refused there"


def _back(machines: Machines, number: int) -> None:
    """A machine that was cut off comes back empty, and no commit is held back any more."""
    machines.lose(number)
    machines.uncut(number)
    for each in range(1, machines.count + 1):
        for name in (late.HELD, late.GO_ON, late.OUTCOME):
            (machines.own_folder(each) / name).unlink(missing_ok=True)
    machines.start(number)
    machines.wait()


def driver(run: Run) -> str:
    """The machine with the driver is lost, with whatever else is on it; it comes back empty."""
    number = run.with_driver()
    run.machines.lose(number)
    run.machines.start(number)
    run.machines.wait()
    return f"machine {number}, of the driver, was lost"


def cut_driver(run: Run) -> str:
    """The driver's machine reaches no other machine any more, but storage, where it may go on renewing its lease."""
    number = run.with_driver()
    run.machines.cut(number)
    return f"machine {number}, of the driver, reached storage alone"


def gcs(run: Run) -> str:
    """The head is lost, and comes back with no memory of the cluster: an operator starts the machines anew."""
    numbers = range(run.machines.count + 1)
    for number in numbers:
        run.machines.lose(number)
    run.machines.start(0)
    run.machines.wait()
    for number in numbers[1:]:
        run.machines.start(number)
    run.machines.wait()
    return "the head was lost"


def head_alone(run: Run) -> str:
    """The head alone is lost, and comes back with its tables from Redis: the gang on the other machines trains on."""
    run.machines.lose(0)
    time.sleep(AWAY_SECONDS)
    run.machines.start(0)
    run.machines.wait()
    return f"the head alone was lost for {AWAY_SECONDS:.0f} s and more"


def one_after_another(run: Run) -> str:
    """While one workflow trains: a slow link, the loss of a machine with a rank, of the driver's machine, of the head.
    (Who is cut off from others has a scenario of its own.)"""
    met = [slow(run), _loss_and_back(run)]
    with run.another_attempt():
        met.append(driver(run))
    return ", ".join([*met, gcs(run)])


def _loss_and_back(run: Run) -> str:
    """A machine with a rank is lost; when the others train without it, it comes back empty."""
    number = run.with_rank()
    with run.another_attempt():
        run.machines.lose(number)
    run.machines.start(number)
    run.machines.wait()
    return f"machine {number} was lost"


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What happens, and what follows from it besides the same bits."""

    act: Callable[[Run], str]
    """Does it, and returns it in words."""
    attempts: int = 2
    """At least so many does training take."""
    most_attempts: int | None = None
    """At most so many; any number if None."""
    driver_on: int | None = None
    """Machine that the first driver has to be on; any if None."""
    told: tuple[str, ...] = (LOST_WITH_RANKS,)
    """Regular expressions, each of which a line of the workflow's events has to match."""
    megabits: float = ENDLESS
    """10^6 bits/s of the links between machines."""
    with_redis: bool = False
    """Whether the head's tables outlive it."""


SCENARIOS = {
    "slow": Scenario(act=slow, attempts=1, told=(), megabits=NARROW),
    "loss": Scenario(act=loss),
    "partition": Scenario(act=partition),
    "cut": Scenario(act=cut, driver_on=0),
    "driver": Scenario(act=driver, driver_on=1, told=(DRIVER_LOST,)),
    "cut-driver": Scenario(act=cut_driver, driver_on=1, told=(GAVE_UP,)),
    "head": Scenario(act=gcs, told=(DRIVER_LOST,)),
    "head-alone": Scenario(
        act=head_alone, attempts=1, most_attempts=1, driver_on=1, told=(), megabits=NARROW, with_redis=True
    ),
}
ALL = Scenario(
    act=one_after_another,
    attempts=4,
    driver_on=1,
    told=(LOST_WITH_RANKS, DRIVER_LOST),
    megabits=NARROW,
)
