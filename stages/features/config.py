"""Settings of stored features. Light: no torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from stages.config import reference
from stages.frozen.config import FrozenConfig

if TYPE_CHECKING:
    from cluster.storage import Storage
    from stages.config import StageFunction
    from stages.context import Output


class FeaturesConfig(FrozenConfig):
    """A frozen model's features of a data set, computed once for all the stages that evaluate them."""

    kind: ClassVar[str] = "features"
    version: ClassVar[int] = 1
    output: ClassVar[str] = "features"

    data: str = reference("dataset", "stage whose data set to compute features of")
    model: str = reference("model", "stage whose model gives the features", alias="from")

    @classmethod
    def function(cls) -> StageFunction:
        from stages.features.run import run

        return run

    def is_in_place(self, storage: Storage, output: Output) -> bool:
        """Whether the files, which all attempts share, are still there."""
        from stages.frozen.store import read_features

        return read_features(storage, output).is_there()
