import pytest

from cluster.storage.file import FileStorage
from pipeline.logs import LogReader, LogShipper
from pipeline.record import EventLog
from tests.unit.stages.lossy import LossyStorage


@pytest.fixture
def storage(tmp_path) -> LossyStorage:
    return LossyStorage(f"file://{tmp_path}")


def test_a_reader_sees_every_line_once_although_an_answer_was_lost(storage, capsys):
    reader = LogReader(storage, "logs/driver")
    with LogShipper(storage, "logs/driver", interval=3600) as shipper:
        print("first")
        storage.losing = True
        shipper._ship()
        # The file is there all the same, and has been read.
        assert reader.new_text() == "first\n"
        print("second")
        shipper._ship()
        assert reader.new_text() == ""
        storage.losing = False
        print("third")
    assert reader.new_text() == "second\nthird\n"
    assert LogReader(storage, "logs/driver").new_text() == "first\nsecond\nthird\n"
    assert "log kept back: the answer was lost" in capsys.readouterr().err


class Failing(FileStorage):
    """Fails to read the keys that end so."""

    broken = "none"

    def read(self, key: str) -> bytes:
        if key.endswith(self.broken):
            raise ConnectionResetError("away for a moment")
        return super().read(key)


def test_what_was_read_before_storage_failed_comes_later(tmp_path):
    storage = Failing(f"file://{tmp_path}")
    for number in range(3):
        storage.write(f"logs/{number:06d}.log", f"line {number}\n".encode())
        EventLog(storage, "w").append("note", number=number)
    reader, events = LogReader(storage, "logs"), EventLog(storage, "w")
    storage.broken = "000002.log"
    with pytest.raises(ConnectionResetError):
        reader.new_text()
    storage.broken = "000001.json"
    with pytest.raises(ConnectionResetError):
        events.new_events()
    storage.broken = "none"
    assert reader.new_text() == "line 0\nline 1\nline 2\n"
    assert [event.data["number"] for event in events.new_events()] == [0, 1, 2]
    assert (reader.new_text(), events.new_events()) == ("", [])
