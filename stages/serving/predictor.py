"""A trained network that answers for encoded images or pixels: what evaluation does to an image, and the network.

Imports nothing that reads storage: this module and what it imports travel with a registered model, see `carried.py`.
Shapes: N images, C classes.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from cluster.errors import UserError, check_format
from stages.data.config import EvaluationResize
from stages.data.decode import decode_rgb, open_image
from stages.data.evaluation import evaluation_image
from stages.data.pixels import normalise
from stages.models.build import Network, build
from stages.models.config import model_config

FORMAT = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"
BATCH = 64
"""Images in one forward pass."""
MOST_PIXELS = 89_478_485
"""Of an image, as in ingestion where nothing else is said: 268 MB when it is decoded."""


class Predictor:
    """Answers for images, in order, however many there are."""

    def __init__(self, network: Network, classes: Sequence[str], evaluation: EvaluationResize, loss: str) -> None:
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._network = network.eval().to(self._device)
        self._classes = np.array(classes, dtype=object)
        self._evaluation, self._sigmoid = evaluation, loss == "sigmoid"

    @classmethod
    def load(cls, folder: str | Path) -> Predictor:
        """The network of a folder with `config.json` and `model.safetensors`. Raises UserError for a newer format."""
        about = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
        check_format(about["format"], FORMAT, f"{folder}/{CONFIG}")
        network = build(model_config(about["model"]), about["resolution"], len(about["classes"]))
        network.load_state_dict(load_file(Path(folder) / WEIGHTS))
        return cls(network, about["classes"], EvaluationResize(**about["evaluation"]), about["loss"])

    def logits(self, images: Any) -> Tensor:
        """float32 [N, C] on the CPU. `images` are encoded images, as bytes or their base64, or pixels [N, H, W, 3].

        Raises UserError for what is neither, and UnreadableImage, with the image's place.
        """
        found = list(_checked(images) if isinstance(images, np.ndarray) and images.ndim > 1 else images)
        parts = [self._forward(found[first : first + BATCH], first) for first in range(0, len(found), BATCH)]
        return torch.cat(parts) if parts else torch.empty(0, len(self._classes))

    def predict(self, images: Any, *, top_k: int = 5, logits: bool = True) -> dict[str, list[Any]]:
        """Columns of answers: the likeliest class and its probability, those of the `top_k` likeliest, all logits.

        Probabilities are of the softmax; of a network that was trained with a sigmoid for each class, of that.
        """
        if top_k < 1:
            raise UserError(f"top_k={top_k}: expected 1 or more")
        found = self.logits(images)
        probabilities = found.sigmoid() if self._sigmoid else found.softmax(dim=1)
        # By the logits: the probabilities of classes that are almost certain are equal.
        order = found.argsort(dim=1, descending=True, stable=True)[:, :top_k]
        best = probabilities.gather(1, order).tolist()
        names = self._classes[order.numpy()].tolist()
        answer: dict[str, list[Any]] = {
            "class": [row[0] for row in names],
            "probability": [row[0] for row in best],
            "top_classes": names,
            "top_probabilities": best,
        }
        return {**answer, "logits": found.tolist()} if logits else answer

    def _forward(self, images: Sequence[Any], first: int) -> Tensor:
        resolution = self._network.resolution
        pixels = np.empty((len(images), resolution, resolution, 3), np.uint8)
        for row, image in enumerate(images):
            pixels[row] = evaluation_image(_decoded(image, first + row), self._evaluation, resolution)
        with torch.inference_mode():
            return self._network(normalise(torch.from_numpy(pixels).to(self._device))).float().cpu()


def _decoded(image: Any, number: int) -> NDArray[np.uint8]:
    if isinstance(image, np.ndarray) and image.ndim == 3:
        return image
    if isinstance(image, str):
        try:
            image = base64.b64decode(image, validate=True)
        except ValueError as error:
            raise UserError(f"image {number} is a text that is no base64 of an encoded image: {error}") from error
    if not isinstance(image, bytes | bytearray | memoryview):
        raise UserError(f"image {number} is of {type(image).__name__}, expected the bytes of an encoded image")
    _check_size(bytes(image), number)
    return np.asarray(decode_rgb(bytes(image), f"image {number}"))


def _check_size(data: bytes, number: int) -> None:
    """Raise UserError for an image that is small as a file and would take a server's memory as pixels."""
    try:
        width, height = open_image(data).size
    except Exception:
        # What is no image is told by decoding it.
        return
    if width * height > MOST_PIXELS:
        raise UserError(
            f"image {number} has {width:,} × {height:,} pixels, expected {MOST_PIXELS:,} at most: send a smaller one"
        )


def _checked(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    images = pixels[None] if pixels.ndim == 3 else pixels
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape[1:]:
        raise UserError(f"got pixels {pixels.dtype} {list(pixels.shape)}, expected uint8 [images, height, width, 3]")
    return images
