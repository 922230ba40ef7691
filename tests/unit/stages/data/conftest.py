"""A data set of the scikit-learn digits in a file storage, ingested once for all tests here."""

import pytest

from cluster.storage import open_storage
from stages.context import Context
from stages.ingest.config import DigitsSource, IngestConfig
from stages.ingest.run import run


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """(storage, output): shards of 100 images, two of the ten classes held out."""
    storage = open_storage(f"file://{tmp_path_factory.mktemp('storage')}")
    context = Context(
        storage=storage,
        folder="stages/ingest/digits",
        attempt=1,
        seed=0,
        tasks=lambda function, items, label: [function(item) for item in items],
        gang=None,
    )
    config = IngestConfig(source=DigitsSource(), samples_per_shard=100, held_out_classes=2)
    return storage, run(config, {}, context).output
