"""Where stages read what is from outside their workflow."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter

from stages.importing.config import ImportConfig
from stages.ingest.config import IngestConfig
from stages.pretrain.config import PretrainConfig

INGEST = TypeAdapter(IngestConfig)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"source": {"kind": "digits"}}, {}),
        ({"source": {"kind": "folder", "path": "/data/photos"}}, {"source.path": "/data/photos"}),
        (
            {"source": {"kind": "table", "path": "s3://bucket/images.csv"}, "splits_file": "/data/splits.csv"},
            {"source.path": "s3://bucket/images.csv", "splits_file": "/data/splits.csv"},
        ),
        (
            {
                "source": {
                    "kind": "webdataset",
                    "shards": {"train": ["s3://b/0.tar", "s3://b/1.tar"], "test": "s3://c/"},
                }
            },
            {"source.shards.train": "s3://b/0.tar s3://b/1.tar", "source.shards.test": "s3://c/"},
        ),
    ],
)
def test_an_ingestion_names_its_source(fields: dict[str, Any], expected: dict[str, str]):
    assert INGEST.validate_python(fields).addresses() == expected


def test_an_import_names_its_file_and_training_nothing():
    assert ImportConfig(path="https://models/b16.npz").addresses() == {"path": "https://models/b16.npz"}
    assert PretrainConfig.model_validate({"data": "ingest", "model": "Ti/16", "updates": 1}).addresses() == {}
