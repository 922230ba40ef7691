import json
import threading

import pytest

from cluster.errors import UserError
from cluster.storage import Conflict, Storage, open_storage
from cluster.storage.file import FileStorage
from pipeline.head import Head, LeaseLost, LeftOut, commit_checkpoint, read_head

FOLDER = "stages/pretrain/0123456789abcdef0123"


def everything(updates):
    """Every checkpoint stays."""
    return updates


@pytest.fixture
def storage(tmp_path) -> Storage:
    return open_storage(f"file://{tmp_path}")


def acquire(storage: Storage, owner: str, ttl: float = 0.2) -> Head:
    head = Head.acquire(storage, FOLDER, owner, ttl=ttl)
    assert head is not None
    return head


def document(storage: Storage):
    found = read_head(storage, FOLDER)
    assert found is not None
    return found[0]


def test_a_zombie_that_lost_its_lease_can_make_nothing_visible(storage):
    zombie = acquire(storage, "first")
    attempt = zombie.new_attempt().attempt
    second = acquire(storage, "second")
    second.new_attempt()
    before = document(storage)

    storage.write(f"{FOLDER}/record-{attempt}.json", b"{}")
    for act in (
        zombie.renew,
        zombie.new_attempt,
        lambda: zombie.commit_record(f"{FOLDER}/record-{attempt}.json"),
        lambda: zombie.release("failed"),
        lambda: commit_checkpoint(storage, FOLDER, zombie.epoch, attempt, f"{FOLDER}/checkpoints/x", 7, everything),
    ):
        with pytest.raises(LeaseLost):
            act()
    assert document(storage) == before


def test_a_worker_of_an_older_attempt_cannot_commit(storage):
    head = acquire(storage, "driver")
    old = head.new_attempt().attempt
    head.new_attempt()
    with pytest.raises(LeaseLost, match="attempt 2; ours was 1"):
        commit_checkpoint(storage, FOLDER, head.epoch, old, f"{FOLDER}/checkpoints/x", 7, everything)
    assert document(storage).checkpoint is None


def test_a_renewed_lease_is_not_taken(storage):
    head = acquire(storage, "alive", ttl=0.3)
    looks = 0

    def waiting(_) -> bool:
        nonlocal looks
        looks += 1
        head.renew()
        return looks < 15

    assert Head.acquire(storage, FOLDER, "waiting", ttl=0.3, waiting=waiting) is None
    assert document(storage).owner == "alive"


def test_a_released_lease_is_taken_at_once_and_keeps_the_checkpoint(storage):
    head = acquire(storage, "first", ttl=3600)
    attempt = head.new_attempt().attempt
    commit_checkpoint(storage, FOLDER, head.epoch, attempt, f"{FOLDER}/checkpoints/00000010-a1", 10, everything)
    head.release("failed")
    second = acquire(storage, "second", ttl=3600)
    state = second.read()
    assert state.epoch == 2
    assert state.checkpoint is not None
    assert state.checkpoint.update == 10


def test_history_says_which_attempt_made_which_updates(storage):
    head = acquire(storage, "driver", ttl=3600)
    for update, new in ((10, True), (20, False), (30, True), (40, False)):
        if new:
            attempt = head.new_attempt().attempt
        commit_checkpoint(storage, FOLDER, head.epoch, attempt, f"{FOLDER}/checkpoints/{update}", update, everything)
    found = [(segment.attempt, segment.start, segment.end) for segment in document(storage).history]
    assert found == [(1, 0, 20), (2, 20, 40)]


def test_driver_and_worker_change_the_same_head_without_losing_a_change(storage):
    head = acquire(storage, "driver", ttl=3600)
    attempt = head.new_attempt().attempt
    updates = range(1, 26)

    def commit() -> None:
        for update in updates:
            commit_checkpoint(
                storage, FOLDER, head.epoch, attempt, f"{FOLDER}/checkpoints/{update}", update, everything
            )

    worker = threading.Thread(target=commit)
    worker.start()
    while worker.is_alive():
        head.renew()
    worker.join()
    state = document(storage)
    assert state.checkpoint is not None
    assert state.checkpoint.update == 25
    assert state.epoch == head.epoch


def test_racing_drivers_get_the_lease_one_at_a_time(storage):
    epochs = []

    def race(name: str) -> None:
        head = acquire(storage, name, ttl=3600)
        epochs.append(head.epoch)
        head.release("stopped")

    threads = [threading.Thread(target=race, args=(f"driver-{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(epochs) == list(range(1, 9))


def test_a_newer_format_is_refused(storage):
    acquire(storage, "driver")
    body = storage.read(f"{FOLDER}/HEAD.json").replace(b'"format":2', b'"format":3')
    storage.write(f"{FOLDER}/HEAD.json", body)
    with pytest.raises(UserError, match="format 3"):
        read_head(storage, FOLDER)


def test_what_was_made_of_other_inputs_is_forgotten(storage):
    head = acquire(storage, "driver")
    head.begin({"data": "one"})
    attempt = head.new_attempt().attempt
    commit_checkpoint(storage, FOLDER, head.epoch, attempt, f"{FOLDER}/checkpoints/x", 7, everything)
    head.begin({"data": "one"})
    assert document(storage).checkpoint is not None
    head.begin({"data": "two"})
    assert (document(storage).checkpoint, document(storage).history) == (None, ())
    # Attempts are counted on: their folders are there.
    assert head.new_attempt().attempt == 2


def test_checkpoints_that_are_not_kept_are_named_no_longer_and_handed_back(storage):
    head = acquire(storage, "driver", ttl=3600)
    attempt = head.new_attempt().attempt

    def commit(update: int) -> tuple[str, ...]:
        last_two_and_multiples_of_30 = lambda updates: {*list(updates)[-2:], *(u for u in updates if u % 30 == 0)}  # noqa: E731
        prefix = f"{FOLDER}/checkpoints/{update}"
        return commit_checkpoint(storage, FOLDER, head.epoch, attempt, prefix, update, last_two_and_multiples_of_30)

    dropped = [commit(update) for update in (10, 20, 30, 40, 50, 60)]
    assert dropped == [
        (),
        (),
        (f"{FOLDER}/checkpoints/10",),
        (f"{FOLDER}/checkpoints/20",),
        (),
        (f"{FOLDER}/checkpoints/40",),
    ]
    assert [item.update for item in document(storage).checkpoints] == [30, 50, 60]


def test_a_damaged_checkpoint_gives_way_to_the_one_before_and_the_curve_stays_whole(storage):
    head = acquire(storage, "driver", ttl=3600)
    attempt = head.new_attempt().attempt
    for update in (10, 20):
        commit_checkpoint(storage, FOLDER, head.epoch, attempt, f"{FOLDER}/checkpoints/{update}", update, everything)
    head.forget_checkpoint(f"{FOLDER}/checkpoints/20")
    assert document(storage).checkpoint.update == 10
    again = head.new_attempt().attempt
    for update in (20, 30):
        commit_checkpoint(storage, FOLDER, head.epoch, again, f"{FOLDER}/checkpoints/{update}-a2", update, everything)
    state = document(storage)
    assert [item.prefix[-5:] for item in state.checkpoints] == ["ts/10", "20-a2", "30-a2"]
    # Updates 11 to 20 have their points already.
    assert [(segment.attempt, segment.start, segment.end) for segment in state.history] == [(1, 0, 20), (2, 20, 30)]


class Forgetful(FileStorage):
    """The answer to a swap is lost, and the lease renewed before it is said again."""

    forgetting = False

    def compare_and_swap(self, key: str, data: bytes, tag: str) -> str:
        found = super().compare_and_swap(key, data, tag)
        if self.forgetting:
            self.forgetting = False
            self.head.renew()
            raise Conflict(key)
        return found


def test_what_is_said_again_after_a_lost_answer_stands_there_once(tmp_path):
    storage = Forgetful(f"file://{tmp_path}")
    storage.head = head = acquire(storage, "driver")
    left_out = LeftOut(attempt=1, update=7, start=0, stop=8, reason="the loss is nan")
    for act in (lambda: head.leave_out(left_out), lambda: head.forget_checkpoint("checkpoints/7")):
        storage.forgetting = True
        act()
    found = document(storage)
    assert list(found.left_out) == [left_out]
    assert list(found.refused) == ["checkpoints/7"]


def test_a_head_of_the_first_format_is_read(storage):
    body = {
        "format": 1, "owner": "old", "epoch": 4, "nonce": "n", "ttl_seconds": 15.0, "state": "failed", "attempt": 2,
        "inputs": {}, "checkpoint": {"prefix": f"{FOLDER}/checkpoints/x", "update": 7}, "history": [],
        "skipped": [], "record": None, "renewed_ms": 0,
    }  # fmt: skip
    storage.write(f"{FOLDER}/HEAD.json", json.dumps(body).encode())
    state = acquire(storage, "new").read()
    assert (state.format, state.epoch, state.checkpoint.update) == (2, 5, 7)


def test_a_zombie_of_a_folder_that_was_removed_and_made_again_changes_nothing(storage):
    zombie = acquire(storage, "first", ttl=3600)
    attempt = zombie.new_attempt().attempt
    storage.delete(f"{FOLDER}/HEAD.json")
    after = acquire(storage, "second", ttl=3600)
    after.new_attempt()
    # Epochs and attempts begin anew, so both are the zombie's.
    assert (zombie.epoch, document(storage).epoch, document(storage).attempt) == (1, 1, attempt)
    with pytest.raises(LeaseLost):
        zombie.renew()
    with pytest.raises(LeaseLost):
        commit_checkpoint(storage, FOLDER, 1, attempt, f"{FOLDER}/checkpoints/x", 7, everything, owner="first")
    assert document(storage).checkpoint is None
