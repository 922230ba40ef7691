"""Any world size, threads, accumulation and place to start: the same samples in the same rows, each exactly once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.storage import open_storage
from stages.context import Context
from stages.data.config import DataConfig
from stages.data.evaluation_loader import evaluation_batches
from stages.data.loader import TrainLoader
from stages.data.manifest import dataset_meta
from stages.data.shards import ShardWriter
from stages.ingest.config import IngestConfig, WebDatasetSource
from stages.ingest.run import run
from tests.unit.stages.ingest.pictures import jpeg

GLOBAL_BATCH = 240
LAYOUTS = {"one": (333,), "fewer than streams": (150, 183), "unequal": (1, 260, 2, 3, 40, 1, 25, 1), "many": (9,) * 37}
WORLD_SIZES = (1, 2, 3, 5, 6, 8)


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """A data set of 333 pictures for each layout of shards. The label is the picture's number."""
    folder = tmp_path_factory.mktemp("layouts")
    storage = open_storage(f"file://{folder}")
    return {name: (storage, ingested(storage, folder / name, counts)) for name, counts in LAYOUTS.items()}


def ingested(storage, folder, counts):
    (folder / "tars").mkdir(parents=True)
    number = 0
    for shard, count in enumerate(counts):
        with open(folder / "tars" / f"train-{shard:03d}.tar", "wb") as file:
            writer = ShardWriter(file)
            for _ in range(count):
                writer.add(f"{number:06d}", "jpg", jpeg(number), [number])
                number += 1
            writer.close()
    context = Context(
        storage=storage,
        folder=f"stages/ingest/{folder.name.replace(' ', '-')}",
        attempt=1,
        seed=0,
        tasks=lambda function, items, label: map(function, items),
        gang=None,
    )
    return run(
        IngestConfig(source=WebDatasetSource(shards={"train": str(folder / "tars" / "*.tar")})), {}, context
    ).output


def loader(data, cache, **place):
    storage, output = data
    config = {"streams": 3, "window": 50, "cache": str(cache), **place.pop("config", {})}
    return TrainLoader(
        storage,
        output,
        ("train",),
        DataConfig(**config),
        resolution=8,
        seed=11,
        global_batch=GLOBAL_BATCH,
        classes=range(len(dataset_meta(output).classes)),
        **{"rank": 0, "world_size": 1, "start": 0, **place},
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def whole(layouts, cache):
    """What one rank reads without threads in five updates, which is three epochs and more: images and labels."""
    found = {}
    for name, data in layouts.items():
        with loader(data, cache, config={"loader_threads": 0}) as batches:
            read = [next(batches) for _ in range(5)]
        found[name] = [
            np.concatenate([getattr(batch, part).numpy() for batch in read]) for part in ("images", "labels")
        ]
    return found


@given(
    layout=st.sampled_from(sorted(LAYOUTS)),
    world_size=st.sampled_from(WORLD_SIZES),
    threads=st.sampled_from([0, 1, 3]),
    accumulation=st.sampled_from([1, 2, 5]),
    start=st.integers(0, 4 * GLOBAL_BATCH),
)
@settings(max_examples=40)
def test_every_row_is_the_same_on_any_machines_from_any_place(
    layouts, whole, cache, layout, world_size, threads, accumulation, start
):
    images, labels = whole[layout]
    rows = GLOBAL_BATCH // world_size
    for rank in range(world_size):
        place = {"rank": rank, "world_size": world_size, "start": start, "config": {"loader_threads": threads}}
        with loader(layouts[layout], cache, **place) as batches:
            batch = next(batches)
            assert batches.cursor == start + GLOBAL_BATCH
        # Micro-batches are slices of a rank's rows, in their order.
        for micro in np.array_split(np.arange(rows), accumulation):
            own = slice(start + rank * rows + micro[0], start + rank * rows + micro[-1] + 1)
            assert batch.samples[micro].tolist() == list(range(own.start, own.stop))
            assert np.array_equal(batch.images[micro], images[own])
            assert np.array_equal(batch.labels[micro], labels[own])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_epoch_holds_each_picture_once_and_the_next_one_in_another_order(whole, layout):
    _, labels = whole[layout]
    epochs = labels[:999].reshape(3, 333)
    assert np.array_equal(np.sort(epochs), np.tile(np.arange(333), (3, 1)))
    assert not (epochs[0] == epochs[1]).all()
    assert not (epochs[1] == epochs[2]).all()


@given(
    layout=st.sampled_from(sorted(LAYOUTS)),
    world_size=st.sampled_from((*WORLD_SIZES, 7)),
    threads=st.sampled_from([0, 1, 3]),
    batch=st.integers(1, 100),
)
@settings(max_examples=30)
def test_evaluation_reads_each_picture_once_in_equal_steps(layouts, cache, layout, world_size, threads, batch):
    storage, output = layouts[layout]
    labels, steps = [], set()
    for rank in range(world_size):
        own = list(
            evaluation_batches(
                storage,
                output,
                ["train"],
                resolution=8,
                batch=batch,
                rank=rank,
                world_size=world_size,
                classes=range(333),
                config=DataConfig(cache=str(cache), loader_threads=threads),
            )
        )
        steps.add(tuple(tuple(step.images.shape) for step in own))
        labels += [label for step in own for label in step.labels[step.mask].tolist()]
    assert sorted(labels) == list(range(333))
    assert len(steps) == 1, "a rank that has fewer steps waits for the others, or they for it"
