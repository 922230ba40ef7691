"""Samples as training is shown them: random crops, mirrored or not, augmented."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stages.data.batches import write_labels
from stages.data.config import DataConfig, RandAugment
from stages.data.crops import Crops
from stages.data.randaugment import LANES, randaugment
from stages.data.random import uniform
from stages.data.reader import SampleReader
from stages.data.transforms import CROP_LANES, crop_boxes


class TrainingImages:
    """Writes them into batches; what is drawn depends on the seed and the samples' numbers alone. Thread-safe."""

    def __init__(self, reader: SampleReader, crops: Crops, config: DataConfig, seed: int) -> None:
        self._reader, self._crops, self._config, self._seed = reader, crops, config, seed

    def write(
        self,
        samples: NDArray[np.int64],
        places: Sequence[tuple[int, int]],
        images: NDArray[np.uint8],
        labels: Tensor,
    ) -> None:
        """The images [n, R, R, 3] and labels [n] or [n, C] of the samples at `places`, (shard, index) of each.

        `samples` are their global numbers [n]. Raises as `SampleReader.read_or_replace` does.
        """
        config = self._config
        read = [self._reader.stored_or_replaced(*place) for place in places]
        numbers = uniform(self._seed, "crop", samples, CROP_LANES)
        boxes = self._boxes([sample.size for sample in read], numbers)
        flips = (uniform(self._seed, "flip", samples, 1)[:, 0] < 0.5) & config.flip
        for row, (box, flip) in enumerate(zip(boxes, flips.tolist(), strict=True)):
            if not self._crops.write(read[row], box, flip, images[row]):
                # Something is wrong with it, so that the plain way has to say what stands here.
                read[row] = sample = self._reader.decoded_or_replaced(*places[row])
                self._crops.write(sample, self._boxes([sample.size], numbers[row : row + 1])[0], flip, images[row])
        if config.randaugment is not None:
            self._augment(samples, images, config.randaugment)
        write_labels(read, labels)

    def _boxes(self, sizes: Sequence[tuple[int, int]], numbers: NDArray[np.float64]) -> NDArray[np.int64]:
        config = self._config
        drawn = {"area": config.crop_area, "ratio": config.crop_ratio, "sampling": config.crop_sampling}
        return crop_boxes(np.array(sizes, dtype=np.int64), numbers, **drawn)

    def _augment(self, samples: NDArray[np.int64], images: NDArray[np.uint8], config: RandAugment) -> None:
        numbers = uniform(self._seed, "randaugment", samples, config.layers * LANES)
        for row in range(len(samples)):
            images[row] = randaugment(images[row], numbers[row], layers=config.layers, magnitude=config.magnitude)
