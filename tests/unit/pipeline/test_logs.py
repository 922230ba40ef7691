import pytest

from pipeline.logs import LogReader, LogShipper
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
