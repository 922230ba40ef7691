"""A rank that hangs is found, named, and ends the attempt."""

from __future__ import annotations

import itertools
import os
import signal
from datetime import timedelta
from typing import Any

import pytest
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from stages.context import read_faults
from stages.training.faults import EXIT_CODE
from stages.training.watchdog import Watchdog, looks
from tests.integration.flows import wait_for
from tests.unit.stages.training.ranks import end_of, start_ranks

HANG_SECONDS = 30.0
"""Longer than a slow machine keeps any rank from its next step."""


def test_a_rank_that_is_stopped_is_named_by_the_others(make_stage, tmp_path):
    """Be it the one in whose process they tell each other, or another: two gangs at once, which wait together."""
    stages, gangs = [make_stage(f"stopped-{victim}") for victim in (0, 1)], list[list[Any]]()
    try:
        for victim, stage in enumerate(stages):
            job = stage.job(updates=100_000, hang_seconds=HANG_SECONDS, save_every=10_000)
            notes = tmp_path / f"notes-{victim}"
            notes.mkdir()
            gangs.append(start_ranks(job, stage.storage.url, stage.folder, ranks=2, attempt=1, notes=notes))
        for victim, processes in enumerate(gangs):
            trains = tmp_path / f"notes-{victim}" / f"samples-1-{victim}.json"
            wait_for(trains.exists, 240, f"update of gang {victim}")
            os.kill(processes[victim].pid, signal.SIGSTOP)
        assert end_of([processes[1 - victim] for victim, processes in enumerate(gangs)], seconds=300) == [EXIT_CODE] * 2
        for victim, stage in enumerate(stages):
            (fault,) = read_faults(stage.storage, stage.folder, 1)
            assert fault.startswith(f"rank {victim} gave no sign of life"), fault
    finally:
        for process in itertools.chain(*gangs):
            process.kill()
            process.join(30)


def test_a_rank_that_does_not_get_on_is_named_with_its_place():
    found: list[str] = []
    watchdog = _without_group(found)
    now = 100.0
    reports = {0: _report(1, 5, "update 5 computes"), 1: _report(1, 4, "update 5 waits for images")}
    assert watchdog._trouble(reports, now) is None
    for seconds in range(1, 12):
        reports = {rank: {**report, "beats": 1 + seconds} for rank, report in reports.items()}
        trouble = watchdog._trouble(reports, now + seconds)
        if trouble is not None:
            break
    assert seconds == 11
    assert trouble == "rank 1 did not get on for 10 s: update 5 waits for images"


def test_nothing_is_wrong_while_anybody_gets_on():
    watchdog = _without_group([])
    for seconds in range(40):
        reports = {0: _report(seconds, 5, "update 5 computes"), 1: _report(seconds, seconds // 8, "evaluation")}
        assert watchdog._trouble(reports, 100.0 + seconds) is None


def test_a_rank_that_is_gone_is_named_while_the_others_wait_for_storage():
    watchdog = _without_group([])
    for seconds in range(12):
        # The patient one gets on with every beat.
        waits = _report(seconds, 5, "its checkpoint is stored", patient_beats=seconds)
        reports = {0: waits, 1: _report(3, 5, "update 5 is saved")}
        trouble = watchdog._trouble(reports, 100.0 + seconds)
        assert (trouble is not None) == (seconds > 10)
    assert trouble == "rank 1 gave no sign of life for 10 s"


@pytest.mark.parametrize("behind", [0, 1])
def test_whoever_waited_longer_for_storage_before_does_not_hide_who_is_behind(behind):
    ahead = 1 - behind
    ranks = {behind: _alone(patient_beats=5), ahead: _alone(patient_beats=3)}
    for update in range(1, 813):
        for rank, watchdog in ranks.items():
            watchdog.at(f"update {update} waits for images")
            if rank == ahead or update < 812:
                watchdog.at(f"update {update} computes")
    judge = _without_group([])
    troubles = [judge._trouble(_said(ranks), 100.0 + seconds) for seconds in range(12)]
    assert troubles[-1] == f"rank {behind} did not get on for 10 s: update 812 waits for images"


@pytest.mark.parametrize(
    ("ranks", "lookers"), [(1, 1), (2, 2), (8, 8), (16, 16), (31, 31), (64, 16), (1000, 17), (1024, 16)]
)
def test_of_many_ranks_a_few_look_at_all(ranks, lookers):
    assert sum(looks(rank, ranks) for rank in range(ranks)) == lookers


def test_a_rank_that_does_not_look_is_seen_by_one_that_does():
    server = _store()
    heard: list[dict] = []
    ranks = [_of_many(rank, _store(server.port)) for rank in range(32)]
    ranks[0]._trouble = lambda reports, now: heard.append(reports)
    for watchdog in (*ranks[1:], ranks[0]):
        assert watchdog._look() is None
    assert [report["beats"] for report in heard[0].values()] == [1] * 32


def test_a_rank_that_does_not_look_hears_that_rank_0_is_gone():
    server = _store()
    watchdog = _of_many(1, _store(server.port))
    watchdog._look()
    del server
    with pytest.raises(RuntimeError):
        watchdog._look()


def _store(port: int = 0) -> TCPStore:
    """The store in rank 0, or a connection to it. Each looks its address's name up, which a name server may delay."""
    store = TCPStore("127.0.0.1", port, None, port == 0, timedelta(seconds=60), wait_for_workers=False)
    store.set_timeout(timedelta(seconds=5))
    return store


def _of_many(rank: int, store: TCPStore) -> Watchdog:
    watchdog = _alone(patient_beats=0)
    watchdog._rank, watchdog._ranks, watchdog._looks, watchdog._store = rank, 32, looks(rank, 32), store
    return watchdog


def _alone(*, patient_beats: int) -> Watchdog:
    """A rank's own watchdog that has been patient for some beats, without its threads."""
    watchdog = _without_group([])
    watchdog._rank, watchdog._ranks, watchdog._looks, watchdog._store = 0, 1, True, None
    watchdog._place, watchdog._moves, watchdog._beats = "starts", 0, 0
    watchdog._patient_beats, watchdog._patient = 0, False
    with watchdog.patient("its checkpoint is stored"):
        for _ in range(patient_beats):
            watchdog._look()
    return watchdog


def _said(ranks: dict[int, Watchdog]) -> dict[int, dict]:
    """What ranks tell of themselves in their next beat."""
    said = {}
    for rank, watchdog in ranks.items():
        watchdog._trouble = lambda reports, now, rank=rank: said.update({rank: reports[0]})
        watchdog._look()
    return said


def _report(beats: int, moves: int, place: str, patient_beats: int = 0) -> dict:
    return {"beats": beats, "moves": moves, "patient_beats": patient_beats, "place": place}


def _without_group(found: list[str]) -> Watchdog:
    watchdog = Watchdog.__new__(Watchdog)
    watchdog._seconds, watchdog._found, watchdog._since, watchdog._beaten = 10.0, found.append, {}, {}
    return watchdog
