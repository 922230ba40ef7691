"""Loaders beside ours, for `tests.bench.loader`: each yields batches of images [b, 3, 224, 224] and labels.

All read the same JPEGs, crop them at random (5 to 100 % of the area, ratios of 3/4 to 4/3), resize them bilinearly and
mirror half of them. Two worker processes on two cores, as their documentations advise.
"""

from __future__ import annotations

import importlib.machinery
import io
import sys
import types
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

SIZE, BATCH, WORKERS = 224, 64, 2
Loader = Iterable[Any]


def random_box(random: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
    """Top, left, height, width of a crop as torchvision's `RandomResizedCrop` draws it."""
    for _ in range(10):
        area = height * width * random.uniform(0.05, 1.0)
        ratio = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
        wide, tall = round(float(np.sqrt(area * ratio))), round(float(np.sqrt(area / ratio)))
        if 0 < wide <= width and 0 < tall <= height:
            return int(random.integers(height - tall + 1)), int(random.integers(width - wide + 1)), tall, wide
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


RANDOM = np.random.default_rng(0)


def with_pillow(image: Any) -> torch.Tensor:
    """The usual way: Pillow decodes and resizes, and numbers are made floats in the worker."""
    from PIL import Image

    image = image.convert("RGB")
    top, left, tall, wide = random_box(RANDOM, image.height, image.width)
    image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=(left, top, left + wide, top + tall))
    pixels = np.asarray(image, np.float32) / 127.5 - 1.0
    return torch.from_numpy(np.ascontiguousarray(_mirrored(pixels).transpose(2, 0, 1)))


def with_turbo(data: bytes) -> torch.Tensor:
    """The fast way: libjpeg-turbo decodes all of it, OpenCV resizes, and numbers stay bytes."""
    import cv2
    import simplejpeg

    cv2.setNumThreads(0)
    pixels = simplejpeg.decode_jpeg(data)
    top, left, tall, wide = random_box(RANDOM, *pixels.shape[:2])
    crop = pixels[top : top + tall, left : left + wide]
    resized = cv2.resize(crop, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    return torch.from_numpy(np.ascontiguousarray(_mirrored(resized).transpose(2, 0, 1)))


def _mirrored(pixels: Any) -> Any:
    return pixels[:, ::-1] if RANDOM.random() < 0.5 else pixels


def webdataset_pil(tars: list[str], photos: list[Path], folder: Path) -> Loader:
    return _webdataset(tars, lambda data: with_pillow(_opened(data)))


def webdataset_turbo(tars: list[str], photos: list[Path], folder: Path) -> Loader:
    return _webdataset(tars, with_turbo)


def _webdataset(tars: list[str], transform: Callable[[bytes], torch.Tensor]) -> Loader:
    import webdataset

    found = webdataset.WebDataset(tars, shardshuffle=100, nodesplitter=webdataset.split_by_node)
    found = found.shuffle(1000).to_tuple("jpg", "cls").map_tuple(transform, int)
    return webdataset.WebLoader(found, batch_size=BATCH, num_workers=WORKERS)


def _opened(data: bytes) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(data))


class InMemory(torch.utils.data.Dataset):
    """JPEGs that lie in memory."""

    def __init__(self, photos: list[Path]) -> None:
        self._files = [path.read_bytes() for path in photos]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        return with_turbo(self._files[number]), 0


def decode_limit(tars: list[str], photos: list[Path], folder: Path) -> Loader:
    """A DataLoader that reads nothing: what decoding, cropping and handing over cost."""
    return torch.utils.data.DataLoader(InMemory(photos), batch_size=BATCH, num_workers=WORKERS, shuffle=True)


def ray_data(tars: list[str], photos: list[Path], folder: Path) -> Loader:
    import ray

    if not ray.is_initialized():
        ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = ray.data.read_webdataset(tars, decoder=None)
    found = rows.map(lambda row: {"x": with_pillow(_opened(row["jpg"])).numpy(), "y": int(row["cls"])})
    return ((batch["x"], batch["y"]) for batch in found.iter_torch_batches(batch_size=BATCH))


def litdata(tars: list[str], photos: list[Path], folder: Path) -> Loader:
    import litdata as peer

    if not (folder / "litdata").exists():
        peer.optimize(
            fn=_stored,
            inputs=list(map(str, photos)),
            output_dir=str(folder / "litdata"),
            chunk_bytes="16MB",
            start_method="fork",
        )
    found = peer.StreamingDataset(str(folder / "litdata"), shuffle=True, transform=_from_stored)
    return peer.StreamingDataLoader(found, batch_size=BATCH, num_workers=WORKERS)


def _stored(path: str) -> dict[str, Any]:
    return {"jpg": Path(path).read_bytes(), "cls": 0}


def _from_stored(row: dict[str, Any]) -> tuple[torch.Tensor, int]:
    return with_pillow(_opened(row["jpg"])), row["cls"]


def mosaicml_streaming(tars: list[str], photos: list[Path], folder: Path) -> Loader:
    _without_torchvision()
    from PIL import Image
    from streaming import MDSWriter, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    class Streamed(StreamingDataset):
        def __getitem__(self, at: Any) -> Any:
            row = super().__getitem__(at)
            return with_pillow(row["jpg"]), row["cls"]

    stored = folder / "mosaicml"
    if not stored.exists():
        classes = sorted({path.parent.name for path in photos})
        # Of an image that Pillow opened from a file, `jpeg` keeps the file's own bytes.
        with MDSWriter(out=str(stored), columns={"jpg": "jpeg", "cls": "int"}) as writer:
            for path in photos:
                writer.write({"jpg": Image.open(path), "cls": classes.index(path.parent.name)})
    clean_stale_shared_memory()
    found = Streamed(local=str(stored), shuffle=True, batch_size=BATCH)
    return torch.utils.data.DataLoader(found, batch_size=BATCH, num_workers=WORKERS)


def _without_torchvision() -> None:
    """Empty modules in its place, where it is not there or has no build for this torch, as for CPUs.

    StreamingDataset imports it for data sets that are not used here.
    """
    with suppress(ImportError, RuntimeError):
        import torchvision  # noqa: F401

        return
    names = ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional")
    for name in names:
        module = _Empty(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        sys.modules[name] = module


class _Empty(types.ModuleType):
    def __getattr__(self, name: str) -> type:
        """Whatever is asked of it is a class that does nothing."""
        if name.startswith("__"):
            raise AttributeError(name)
        return object


LOADERS: dict[str, Callable[[list[str], list[Path], Path], Loader]] = {
    "webdataset_pil": webdataset_pil,
    "webdataset_turbo": webdataset_turbo,
    "decode_limit": decode_limit,
    "ray_data": ray_data,
    "litdata": litdata,
    "mosaicml_streaming": mosaicml_streaming,
}
