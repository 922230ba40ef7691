"""Our order in other people's pipelines, of webdataset's own stages."""

import io
import pickle
from itertools import islice

import numpy as np
import pytest
import webdataset
from PIL import Image
from torch.utils.data import DataLoader
from webdataset.pipeline import DataPipeline

from cluster.errors import UserError
from stages.data.as_webdataset import as_webdataset
from stages.data.config import DataConfig
from tests.unit.stages.data.test_loader import SEED, loader, take


def ordered(digits, tmp_path, **settings):
    config = DataConfig(streams=3, window=50, cache=str(tmp_path / "cache"))
    return as_webdataset(*digits, ["train"], config, seed=SEED, **settings)


def test_a_pipeline_of_webdatasets_own_stages_reads_what_training_reads(digits, tmp_path):
    plain = {"crop_area": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "flip": False}
    images, _, numbers = take([loader(digits, tmp_path, global_batch=60, **plain)], 2)
    pipeline = DataPipeline(
        ordered(digits, tmp_path),
        webdataset.decode("rgb8"),
        webdataset.to_tuple("__key__", "png", "cls"),
        webdataset.map_tuple(int, lambda image: np.asarray(Image.fromarray(image).resize((16, 16), 0)), int),
        webdataset.batched(60),
    )
    for batch, (keys, pixels, labels) in enumerate(islice(pipeline, 2)):
        rows = slice(60 * batch, 60 * batch + 60)
        assert list(keys) == numbers[rows].tolist() == list(range(60 * batch, 60 * batch + 60))
        # The digits are 8 × 8: bilinear resizing keeps the mean of each within a grey level or two.
        assert abs(np.stack(list(pixels)).mean((1, 2, 3)) - images[rows].numpy().mean((1, 2, 3))).max() < 3
        assert set(labels) <= set(range(10))


def test_any_position_any_rank_and_both_forms_agree(digits, tmp_path):
    whole = list(islice(ordered(digits, tmp_path), 2000))
    later = list(islice(ordered(digits, tmp_path, start=1500), 500))
    assert later == whole[1500:]
    ranks = [list(islice(ordered(digits, tmp_path, start=4, rank=rank, world_size=3), 20)) for rank in range(3)]
    assert [sample for row in zip(*ranks, strict=True) for sample in row] == whole[4:64]
    for raw, decoded in zip(whole[:50], islice(ordered(digits, tmp_path, decode=True), 50), strict=True):
        assert (raw["__key__"], raw["__url__"]) == (decoded["__key__"], decoded["__url__"])
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(raw["png"])).convert("RGB")), decoded["image"])
        assert int(raw["cls"]) == decoded["label"]


def test_it_can_be_sent_to_another_process_and_read_by_workers(digits, tmp_path):
    source = pickle.loads(pickle.dumps(ordered(digits, tmp_path)))
    pipeline = DataPipeline(source, webdataset.split_by_worker, webdataset.to_tuple("__key__", "cls"))
    pipeline = pipeline.with_epoch(30)
    found = [int(key) for key, _ in DataLoader(pipeline, num_workers=2, batch_size=None)]
    assert sorted(found) == list(range(60))


def test_positions_that_cannot_be_are_refused(digits, tmp_path):
    with pytest.raises(UserError, match="rank=3, world_size=3"):
        ordered(digits, tmp_path, rank=3, world_size=3)
