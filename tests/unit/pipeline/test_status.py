import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from cluster.errors import UserError
from cluster.storage import open_storage
from pipeline.display import trouble_lines
from pipeline.driver_numbers import take_number
from pipeline.head import Head, read_head
from pipeline.keeper import request_cancel
from pipeline.record import FORMAT, EventLog, mark
from pipeline.status import StatusReader, match_id, silence, states


@pytest.fixture
def storage(tmp_path):
    return open_storage(f"file://{tmp_path}")


def running(storage, name: str, *, silent_for: float = 0) -> Head:
    head = Head.acquire(storage, f"workflows/{name}", "driver", ttl=5)
    assert head is not None
    mark(storage, name, "running")
    document, tag = read_head(storage, head.folder)
    old = document.model_copy(update={"renewed_ms": document.renewed_ms - int(1000 * silent_for)})
    storage.compare_and_swap(f"{head.folder}/HEAD.json", old.body(), tag)
    return head


def test_a_driver_that_gives_no_sign_of_life_is_shown_as_silent(storage):
    running(storage, "digits-20260101-000002-bbbb", silent_for=60)
    running(storage, "digits-20260101-000001-aaaa")
    mark(storage, "fashion-20260101-000000-cccc", "submitted")
    assert list(states(storage).items()) == [
        ("fashion-20260101-000000-cccc", "submitted"),
        ("digits-20260101-000001-aaaa", "running"),
        ("digits-20260101-000002-bbbb", "silent"),
    ]
    assert silence(storage, "digits-20260101-000001-aaaa") is None
    assert silence(storage, "digits-20260101-000002-bbbb") == pytest.approx(60, abs=5)


def test_a_workflow_that_ended_is_never_silent(storage):
    head = running(storage, "digits-1", silent_for=60)
    head.release("stopped")
    mark(storage, "digits-1", "stopped")
    assert states(storage) == {"digits-1": "stopped"}


def test_a_cancel_request_names_the_driver_that_runs(storage):
    request_cancel(storage, "digits-1")
    assert b'"epoch": 1' in storage.read("workflows/digits-1/CANCEL")
    head = running(storage, "digits-1")
    head.release("stopped")
    with pytest.raises(UserError, match="does not run"):
        request_cancel(storage, "digits-1")
    running(storage, "digits-1")
    request_cancel(storage, "digits-1")
    assert b'"epoch": 2' in storage.read("workflows/digits-1/CANCEL")


def test_a_cancel_request_reaches_a_driver_that_is_still_to_start(storage):
    running(storage, "digits-1").release("stopped")
    mark(storage, "digits-1", "stopped")
    mark(storage, "digits-1", "submitted")
    request_cancel(storage, "digits-1")
    assert b'"epoch": 2' in storage.read("workflows/digits-1/CANCEL")


def test_an_event_that_cannot_be_stored_leaves_no_gap(storage, monkeypatch):
    log = EventLog(storage, "digits-1")
    log.append("first")
    with monkeypatch.context() as patch:
        patch.setattr(type(storage), "write_if_absent", lambda *_: (_ for _ in ()).throw(ConnectionError("away")))
        with pytest.raises(ConnectionError):
            log.append("lost")
    log.append("second")
    assert [event.type for event in EventLog(storage, "digits-1").new_events()] == ["first", "second"]


def test_events_without_a_format_are_read_and_newer_ones_refused(storage):
    old = {"number": 0, "time_ms": 1, "type": "first"}
    storage.write("workflows/digits-1/events/000000.json", json.dumps(old).encode())
    log = EventLog(storage, "digits-1")
    assert [event.type for event in log.new_events()] == ["first"]
    newer = {"format": FORMAT + 1, "moon": "full"}
    storage.write("workflows/digits-1/events/000001.json", json.dumps(newer).encode())
    with pytest.raises(UserError, match=rf"events/000001\.json has format {FORMAT + 1}.*install a newer"):
        log.new_events()


def test_two_drivers_of_a_workflow_have_different_numbers(storage):
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda _: take_number(storage, "digits-1"), range(8)))
    assert sorted(numbers) == list(range(8))


def test_ids_are_matched_by_their_beginning(storage):
    known = ["digits-20260101-000000-aaaa", "digits-20260102-000000-bbbb", "small-20260101-120000-cccc"]
    assert match_id(storage, known, "small") == known[2]
    assert match_id(storage, known, None) == known[1]
    with pytest.raises(UserError, match="2 match"):
        match_id(storage, known, "digits")
    with pytest.raises(UserError, match="none matches"):
        match_id(storage, known, "fashion")
    with pytest.raises(UserError, match="submit one"):
        match_id(storage, [], None)


def test_events_fold_into_a_status(storage):
    log = EventLog(storage, "w")
    log.append("driver_submitted", number=0)
    log.append("waiting", None, holder="another", ttl_seconds=5.0)
    reader = StatusReader(storage, "w", ["first", "second"])
    reader.update()
    assert reader.status.state == "submitted"
    assert "waiting for another" in reader.status.message
    log.append("workflow_started", owner="me", driver=0)
    log.append("stage_started", "first", folder="stages/x/1")
    log.append("attempt_started", "first", attempt=2, folder="stages/x/1", checkpoint={"prefix": "p", "update": 40})
    reader.update()
    assert (reader.status.state, reader.status.message) == ("running", "")
    assert reader.status.stages["first"].prefix == "stages/x/1/attempts/2"
    assert reader.status.stages["first"].message == "from update 40"
    assert reader.status.stages["second"].outcome == "pending"
    log.append("stage_done", "first", metrics={"loss": 1.0}, seconds=3.0)
    log.append("stage_failed", "second", message="lr=-1")
    log.append("workflow_ended", state="failed", driver=0)
    reader.update()
    assert reader.status.state == "failed"
    assert reader.status.stages["first"].outcome == "done"
    assert reader.status.stages["second"].message == "lr=-1"


def test_a_wait_is_told_until_it_is_over(storage):
    log, reader = EventLog(storage, "digits-1"), StatusReader(storage, "digits-1", ["ingest"])
    log.append("waiting", None, holder="first", ttl_seconds=15.0)
    reader.update()
    assert reader.status.message == "waiting for first to end or to be silent for 15.0 s"
    log.append("workflow_started", None)
    log.append("waiting", "ingest", holder="second", ttl_seconds=15.0)
    reader.update()
    assert reader.status.message == ""
    assert reader.status.stages["ingest"].message == "waiting for second to end or to be silent for 15.0 s"
    log.append("stage_done", "ingest", metrics={}, seconds=1.0)
    log.append("workflow_ended", None, state="done")
    reader.update()
    assert (reader.status.state, reader.status.message) == ("done", "")
    assert reader.status.stages["ingest"].message == ""


def test_what_went_wrong_is_remembered_after_it_was_made_good(storage):
    log = EventLog(storage, "digits-1")
    lost = "machine 10.0.0.3 is lost, and with it rank 2"
    log.append("attempt_ended", "pretrain", attempt=1, outcome="failed", message=lost)
    log.append("driver_lost", number=0, reason="the job is gone", tries=1, budget=8)
    log.append("stage_interrupted", "pretrain", reason="resized", notice_seconds=None, save_seconds=1, left=3)
    log.append("stage_rolled_back", "pretrain", update=7, start=0, stop=64, reason="the loss is nan")
    log.append("attempt_ended", "pretrain", attempt=2, outcome="done", message="")
    log.append("stage_done", "pretrain", metrics={}, seconds=3.0)
    reader = StatusReader(storage, "digits-1", ["pretrain"])
    reader.update()
    assert [item.text for item in reader.status.troubles] == [
        f"pretrain: attempt 1 failed: {lost}",
        "its driver was lost (the job is gone); another one goes on (1 of 8)",
        "pretrain: went back at update 7: the loss is nan; samples 0 to 64 left out",
    ]
    assert reader.status.stages["pretrain"].message == ""


def test_the_newest_troubles_are_shown_and_how_many_there_are(storage):
    log = EventLog(storage, "digits-1")
    for attempt in range(12):
        log.append("attempt_ended", "pretrain", attempt=attempt, outcome="failed", message="[rank] 0 died")
    reader = StatusReader(storage, "digits-1", ["pretrain"])
    assert list(trouble_lines(reader.status)) == []
    reader.update()
    head, *lines = [line.plain for line in trouble_lines(reader.status)]
    assert head == "what went wrong (the newest 10 of 12)"
    assert [line.split("  ", 1)[1] for line in lines] == [
        f"pretrain: attempt {attempt} failed: [rank] 0 died" for attempt in range(2, 12)
    ]
