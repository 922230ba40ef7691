from __future__ import annotations

import pytest

from cluster.storage import open_storage
from stages.context import Output
from tests.unit.stages.chain import Stages


@pytest.fixture(scope="session")
def ingested_digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Stages, Output]:
    """The real digits, three of whose classes are held out, and the storage that has them."""
    stages = Stages(open_storage(f"file://{tmp_path_factory.mktemp('chain')}"))
    return stages, stages.ingested()
