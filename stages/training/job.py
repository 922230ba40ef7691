"""A training run, as whoever asks for it says it: a driver, which has no need of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.context import Output, Rank
from stages.data.manifest import dataset_meta
from stages.models.config import AnyModel
from stages.models.masked_config import MaskedConfig
from stages.training.config import TrainingConfig
from stages.training.keeping import KeepRule
from stages.training.memory import Network
from stages.training.schedule import Cooldown, cooled_rate, learning_rate

if TYPE_CHECKING:
    from cluster.storage import Storage
    from stages.models.resampling import Mode


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a rank needs to know of a training run. Picklable."""

    config: TrainingConfig
    model: AnyModel
    resolution: int
    dataset: Output
    splits: tuple[str, ...]
    evaluation: dict[str, tuple[str, ...]]
    """Splits to evaluate at the end, by the name that their metrics carry. `validation` also in between."""
    class_ids: tuple[int, ...]
    """The data set's label of each output of the network, or of each class that it is shown."""
    updates: int
    seed: int
    pretrained: Output | None = None
    resampling: Mode = "scipy_bilinear"
    fresh_head: bool = True
    """Whether the pretrained model's head is left out."""
    cooldown: Cooldown | None = None
    """How a branch ends, which begins with a checkpoint of its trunk."""
    trunk_folder: str | None = None
    """Key prefix of the trunk's folder."""
    masked: MaskedConfig | None = None
    """How masked patches are predicted, where they are, in place of classes."""
    evaluated_every: int = 0
    """Updates between checkpoints that somebody else evaluates, which stay until that is done; 0 for none."""

    @property
    def network(self) -> Network:
        """What is trained, as far as its size goes."""
        classes = 0 if self.masked is not None else len(self.class_ids)
        return Network(model=self.model, resolution=self.resolution, num_classes=classes, masked=self.masked)

    def rate(self, update: int) -> float:
        """Learning rate of an update."""
        if self.cooldown is not None:
            return cooled_rate(self.config, update, self.cooldown)
        return learning_rate(self.config, update, self.updates)

    def keep_rule(self, storage: Storage) -> KeepRule:
        """Which of the checkpoints stay."""
        return KeepRule(
            storage=storage,
            last=self.config.keep_last,
            every=self.config.keep_every,
            evaluated_every=self.evaluated_every,
        )

    def about(self) -> dict[str, Any]:
        """What whoever uses the weights has to know. JSON."""
        dataset = dataset_meta(self.dataset)
        return {
            "model": self.model.model_dump(mode="json"),
            "resolution": self.resolution,
            "num_classes": self.network.num_classes,
            "classes": [dataset.classes[i] for i in self.class_ids],
            "class_ids": list(self.class_ids),
            "seed": self.seed,
            "trained_on": self.dataset.digest,
            "train_images": sum(dataset.splits[name].count for name in self.splits),
            **({"pretrained": self.pretrained.digest} if self.pretrained is not None else {}),
            **({"objective": self.masked.model_dump(mode="json")} if self.masked is not None else {}),
        }


def train(job: Job, rank: Rank) -> dict[str, Any] | None:
    """See `stages.training.loop.train`."""
    from stages.training import loop

    return loop.train(job, rank)
