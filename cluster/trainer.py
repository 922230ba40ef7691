"""Ray Train's trainer without what a gang has no use for."""

from __future__ import annotations

from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2.api.callback import RayTrainCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer


class Trainer(DataParallelTrainer):
    """Starts no manager for Ray's data sets, of which there are none: a process fewer at every start of a gang."""

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        # There is no public switch (2.60).
        return [own for own in super()._create_default_callbacks() if not isinstance(own, DatasetsCallback)]
