"""Training batches are the same with and without the native helper, also of damaged images."""

import threading

import numpy as np
import pytest
import torch

from stages.data import reader as reader_module
from stages.data.config import DataConfig
from stages.data.crops import Crops
from stages.data.evaluation_loader import evaluation_batches
from stages.data.loader import TrainLoader
from stages.data.manifest import dataset_meta
from stages.data.native.helper import Native, native
from stages.data.reader import Decoded, Stored
from stages.ingest.run import run
from tests.unit.stages.data.pictures import for_the_helper, not_for_the_helper, picture, pillow
from tests.unit.stages.ingest.pictures import context, ingest


@pytest.fixture(autouse=True)
def helper():
    """Nothing to compare where there is none."""
    if native() is None:
        pytest.skip("no native helper here")


def broken_table(data):
    """A JPEG whose header is whole, and whose second table of codes is none."""
    changed = bytearray(data)
    place = changed.index(b"\xff\xc4") + 5
    changed[place : place + 16] = b"\xff" * 16
    return bytes(changed)


def cut_below(data):
    """A JPEG whose lower half is lost, with an end behind a marker that does not belong there."""
    return data[: len(data) * 2 // 3] + b"\xff\xfe\x00\x03x\xff\xd9"


def progressive_without_its_rest(data):
    """Cut in a later pass of a progressive JPEG; bytes that look like an end follow."""
    return data[: len(data) * 3 // 4] + b"\xff\xc4\x00\xff\xff\xd9"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """(storage, output) of images of every kind, larger and smaller ones, whole and damaged ones."""
    folder = tmp_path_factory.mktemp("pictures")
    written = 0
    for name, shape in (("large", (170, 190)), ("other", (151, 203)), ("small", (40, 50))):
        (folder / "photos" / name).mkdir(parents=True)
        image = picture(*shape, seed=written)
        plain, progressive = pillow(image), pillow(image, progressive=True)
        damaged = [broken_table(plain), cut_below(plain), progressive_without_its_rest(progressive)]
        damaged += [plain[:-40] + bytes(38) + b"\xff\xd9", plain.replace(plain[-300:-280], bytes(20))]
        whole = [*for_the_helper(image).values(), *not_for_the_helper(image).values()]
        for data in [*whole, *damaged]:
            kind = {b"\xff\xd8": "jpg", b"\x89P": "png", b"RI": "webp"}[data[:2]]
            (folder / "photos" / name / f"{written:03}.{kind}").write_bytes(data)
            written += 1
    place = context(folder)
    source = {"kind": "folder", "path": str(folder / "photos")}
    config = ingest(source, samples_per_shard=40, validation_fraction=0, test_fraction=0, max_bad=0.5)
    return place.storage, run(config, {}, place).output


def batches(pictures, tmp_path, *, updates=6, world_size=1, start=0, **config):
    """Images, labels and sample numbers of all ranks, and how many samples were replaced."""
    storage, output = pictures
    settings = {"streams": 3, "window": 30, "cache": str(tmp_path / "cache"), "max_bad": 0.5, **config}
    found = []
    for rank in range(world_size):
        with TrainLoader(
            storage, output, ["train"], DataConfig(**settings), resolution=48, seed=3, global_batch=24, rank=rank,
            world_size=world_size, start=start, classes=range(len(dataset_meta(output).classes)),
        ) as loader:  # fmt: skip
            rows = [next(loader) for _ in range(updates)]
            # Batches that were prepared ahead may have met others.
            replaced = loader.replaced if not settings.get("loader_threads", 2) else None
        found.append((rows, replaced))
    return found


def same(one, other):
    return all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and np.array_equal(a.samples, b.samples)
        for (rows, _), (others, _) in zip(one, other, strict=True)
        for a, b in zip(rows, others, strict=True)
    )


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("sampling", ["tensorflow", "torchvision"])
def test_batches_are_the_same_with_and_without_it(pictures, tmp_path, threads, sampling):
    settings = {"loader_threads": threads, "crop_sampling": sampling}
    fast, plain = (batches(pictures, tmp_path, native=each, **settings) for each in (True, False))
    assert same(fast, plain)
    assert [replaced for _, replaced in fast] == [replaced for _, replaced in plain]
    if not threads:
        assert fast[0][1] > 2


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_with_and_without_it_make_one_batch(pictures, tmp_path, world_size):
    """As machines with and without a compiler do."""
    one = batches(pictures, tmp_path, native=False)[0][0]
    ranks = batches(pictures, tmp_path, world_size=world_size)
    for update, batch in enumerate(one):
        assert torch.equal(batch.images, torch.cat([rows[update].images for rows, _ in ranks]))


def test_a_run_that_goes_on_with_it_goes_on_with_the_same_rows(pictures, tmp_path):
    undisturbed = batches(pictures, tmp_path, updates=6, native=False)[0][0]
    later = batches(pictures, tmp_path, updates=3, start=3 * 24)[0][0]
    assert same([(undisturbed[3:], None)], [(later, None)])


def test_mixed_and_changed_images_are_the_same_too(pictures, tmp_path):
    settings = {"mixup": 0.5, "randaugment": {"layers": 2, "magnitude": 10}}
    fast, plain = (batches(pictures, tmp_path, native=each, **settings) for each in (True, False))
    assert same(fast, plain)
    assert all(torch.equal(a.mixing.images, b.mixing.images) for a, b in zip(fast[0][0], plain[0][0], strict=True))


@pytest.mark.parametrize("method", [{"method": "resize"}, {"method": "resize_then_crop", "size": 56}], ids=str)
@pytest.mark.parametrize("threads", [0, 3])
def test_evaluation_shows_the_same_with_and_without_it(pictures, tmp_path, method, threads):
    """Unreadable images too are the same ones, and zeros."""
    storage, output = pictures
    found = []
    for fast in (True, False):
        config = DataConfig(
            cache=str(tmp_path / "cache"), max_bad=0.5, native=fast, loader_threads=threads, evaluation=method
        )
        found.append(
            list(
                evaluation_batches(
                    storage,
                    output,
                    ["train"],
                    resolution=48,
                    batch=7,
                    rank=0,
                    world_size=1,
                    config=config,
                    classes=range(len(dataset_meta(output).classes)),
                )
            )
        )
    assert sum(int((~batch.mask).sum()) for batch in found[0]) > 3
    for one, other in zip(*found, strict=True):
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("images", "labels", "mask"))
        assert not one.images[~one.mask].any()


@pytest.fixture
def calls(monkeypatch):
    """How often the helper was asked, by what for: JPEGs that it takes, and crops of them. No image is kept."""
    monkeypatch.setattr(reader_module, "_KEPT_BYTES", 0)
    found = {"taken": 0, "cropped": 0}
    lock, look, crop = threading.Lock(), Native.look, Native.crop

    def counted(name):
        with lock:
            found[name] += 1

    def looked(self, data):
        size = look(self, data)
        if size is not None:
            counted("taken")
        return size

    def cropped(self, *arguments):
        counted("cropped")
        return crop(self, *arguments)

    monkeypatch.setattr(Native, "look", looked)
    monkeypatch.setattr(Native, "crop", cropped)
    return found


def trained(pictures, config):
    storage, output = pictures
    with TrainLoader(
        storage, output, ["train"], config, resolution=48, seed=3, global_batch=24, rank=0, world_size=1, start=0,
        classes=range(len(dataset_meta(output).classes)),
    ) as loader:  # fmt: skip
        assert loader.native == config.native
        for _ in range(4):
            next(loader)


def evaluated(pictures, config):
    storage, output = pictures
    classes = range(len(dataset_meta(output).classes))
    for _ in evaluation_batches(
        storage, output, ["train"], resolution=48, batch=24, rank=0, world_size=1, config=config, classes=classes
    ):
        pass


@pytest.mark.parametrize("read", [trained, evaluated])
@pytest.mark.parametrize("threads", [0, 2])
def test_the_helper_makes_the_crops_of_all_that_it_takes(pictures, tmp_path, calls, read, threads):
    settings = {"cache": str(tmp_path / "cache"), "max_bad": 0.5, "loader_threads": threads}
    read(pictures, DataConfig(native=False, **settings))
    assert calls == {"taken": 0, "cropped": 0}
    read(pictures, DataConfig(native=True, **settings))
    assert calls["cropped"] == calls["taken"] > 30


def test_decoded_images_are_resized_in_place_by_it():
    image, out = picture(60, 80), np.zeros((2, 32, 32, 3), dtype=np.uint8)
    for helper, place in ((native(), out[0]), (None, out[1])):
        assert Crops(helper).write(Decoded(image, (0,)), np.array([3, 5, 40, 50]), True, place)
    assert np.array_equal(*out)
    assert not Crops(None).write(Stored(b"", (1, 1), (0,)), np.array([0, 0, 1, 1]), False, out[0])
