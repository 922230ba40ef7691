import json
import time

import pytest

from cluster.errors import UserError
from stages.metrics import FORMAT, MetricReader, MetricWriter
from tests.unit.stages.lossy import LossyStorage

PREFIX = "stages/pretrain/x/attempts/1"


@pytest.fixture
def storage(tmp_path) -> LossyStorage:
    return LossyStorage(f"file://{tmp_path}")


def steps(reader: MetricReader) -> list[int]:
    return [point.step for point in reader.new_points()]


def test_a_reader_sees_every_point_once_although_an_answer_was_lost(storage):
    writer, reader = MetricWriter(storage, PREFIX, interval=3600), MetricReader(storage, PREFIX)
    writer.log({"loss": 1.0}, 1)
    storage.losing = True
    with pytest.raises(ConnectionResetError):
        writer.flush()
    # The file is there all the same, and has been read.
    assert steps(reader) == [1]
    writer.log({"loss": 0.5}, 2)
    with pytest.raises(ConnectionResetError):
        writer.flush()
    assert steps(reader) == []
    storage.losing = False
    writer.log({"loss": 0.25}, 3)
    writer.flush()
    assert steps(reader) == [2, 3]
    writer.close()
    assert steps(MetricReader(storage, PREFIX)) == [1, 2, 3]


def test_what_the_thread_could_not_store_is_stored_by_a_later_try(storage, capsys):
    storage.losing = True
    writer = MetricWriter(storage, PREFIX, interval=0.01)
    writer.log({"loss": 1.0}, 1)
    deadline = time.monotonic() + 10
    while "metrics are kept back" not in capsys.readouterr().out and time.monotonic() < deadline:
        time.sleep(0.01)
    writer.log({"loss": 0.5}, 2)
    storage.losing = False
    writer.close()
    assert steps(MetricReader(storage, PREFIX)) == [1, 2]


def test_points_without_a_format_are_read_and_newer_ones_refused(storage):
    point = {"name": "loss", "value": 1.0, "step": 7, "time_ms": 1}
    storage.write(f"{PREFIX}/metrics/000000.jsonl", json.dumps(point).encode())
    reader = MetricReader(storage, PREFIX)
    assert steps(reader) == [7]
    storage.write(f"{PREFIX}/metrics/000001.jsonl", json.dumps({"format": FORMAT + 1, "moon": "full"}).encode())
    with pytest.raises(UserError, match=rf"metrics/000001\.jsonl has format {FORMAT + 1}.*install a newer"):
        steps(reader)
