"""Times in S3's answers, as botocore's own parser reads them, which is slower."""

import pytest
from botocore.utils import parse_timestamp

from cluster.storage.s3 import _timestamp

FORMS = [
    *("2026-01-31T10:15:00Z", "2026-01-31T10:15:00.123Z", "2026-01-31T10:15:00+02:00", "20260131T101500Z"),
    *("Sat, 31 Jan 2026 10:15:00 GMT", "1769854500", 1769854500, 1769854500.5),
]


@pytest.mark.parametrize("value", FORMS)
def test_a_time_is_what_botocore_makes_of_it(value):
    found = _timestamp(value)
    assert found == parse_timestamp(value)
    assert found.tzinfo is not None
