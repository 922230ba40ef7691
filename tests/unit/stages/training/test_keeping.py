"""Which checkpoints stay."""

import pytest

from cluster.storage import open_storage
from stages.training.keeping import KeepRule, checkpoint_prefix, evaluation_key, update_and_attempt

FOLDER = "stages/pretrain/x"


@pytest.fixture
def storage(tmp_path):
    return open_storage(f"file://{tmp_path}")


def checkpoints(*updates: int, attempt: int = 1) -> dict[int, str]:
    return {update: checkpoint_prefix(FOLDER, update, attempt) for update in updates}


def test_the_newest_and_multiples_stay(storage):
    rule = KeepRule(storage=storage, last=2, every=30)
    assert rule(checkpoints(10, 20, 30, 40, 50)) == {30, 40, 50}
    assert KeepRule(storage=storage, last=1)(checkpoints(10, 20)) == {20}


def test_what_is_to_be_evaluated_stays_until_it_is(storage):
    rule, there = KeepRule(storage=storage, last=1, evaluated_every=20), checkpoints(10, 20, 30, 40, 50)
    assert rule(there) == {20, 40, 50}
    storage.write(evaluation_key(there[20]), b"")
    assert rule(there) == {40, 50}
    # Another attempt's is not this one's.
    assert rule(checkpoints(10, 20, 30, attempt=2)) == {20, 30}


def test_keys_tell_update_and_attempt():
    prefix = checkpoint_prefix(FOLDER, 1_234_567_890, 12)
    assert update_and_attempt(prefix) == (1_234_567_890, 12)
    assert evaluation_key(prefix) == f"{FOLDER}/attempts/12/fewshot/1234567890.jsonl"
    assert evaluation_key(checkpoint_prefix(FOLDER, 10, 3)) == f"{FOLDER}/attempts/3/fewshot/00000010.jsonl"
