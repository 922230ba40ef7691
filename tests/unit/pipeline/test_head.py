import threading

import pytest

from cluster.errors import UserError
from cluster.storage import Storage, open_storage
from pipeline.head import Head, LeaseLost, commit_checkpoint, read_head

FOLDER = "stages/pretrain/0123456789abcdef0123"


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
        lambda: commit_checkpoint(storage, FOLDER, zombie.epoch, attempt, f"{FOLDER}/checkpoints/x", 7),
    ):
        with pytest.raises(LeaseLost):
            act()
    assert document(storage) == before


def test_a_worker_of_an_older_attempt_cannot_commit(storage):
    head = acquire(storage, "driver")
    old = head.new_attempt().attempt
    head.new_attempt()
    with pytest.raises(LeaseLost, match="attempt 2; ours was 1"):
        commit_checkpoint(storage, FOLDER, head.epoch, old, f"{FOLDER}/checkpoints/x", 7)
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
    commit_checkpoint(storage, FOLDER, head.epoch, attempt, f"{FOLDER}/checkpoints/00000010-a1", 10)
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
        commit_checkpoint(storage, FOLDER, head.epoch, attempt, f"{FOLDER}/checkpoints/{update}", update)
    found = [(segment.attempt, segment.start, segment.end) for segment in document(storage).history]
    assert found == [(1, 0, 20), (2, 20, 40)]


def test_driver_and_worker_change_the_same_head_without_losing_a_change(storage):
    head = acquire(storage, "driver", ttl=3600)
    attempt = head.new_attempt().attempt
    updates = range(1, 26)

    def commit() -> None:
        for update in updates:
            commit_checkpoint(storage, FOLDER, head.epoch, attempt, f"{FOLDER}/checkpoints/{update}", update)

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
    body = storage.read(f"{FOLDER}/HEAD.json").replace(b'"format":1', b'"format":2')
    storage.write(f"{FOLDER}/HEAD.json", body)
    with pytest.raises(UserError, match="format 2"):
        read_head(storage, FOLDER)


def test_what_was_made_of_other_inputs_is_forgotten(storage):
    head = acquire(storage, "driver")
    head.begin({"data": "one"})
    attempt = head.new_attempt().attempt
    commit_checkpoint(storage, FOLDER, head.epoch, attempt, f"{FOLDER}/checkpoints/x", 7)
    head.begin({"data": "one"})
    assert document(storage).checkpoint is not None
    head.begin({"data": "two"})
    assert (document(storage).checkpoint, document(storage).history) == (None, ())
    # Attempts are counted on: their folders are there.
    assert head.new_attempt().attempt == 2
