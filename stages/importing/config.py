"""Settings of the import of a model. Light: no torch here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from stages.config import StageConfig, placement

if TYPE_CHECKING:
    from stages.config import StageFunction


def _absolute(address: str) -> str:
    """Workers run in folders of their own: a relative path is meant of the folder where the workflow is read."""
    return address if "://" in address else str(Path(address).expanduser().absolute())


class ImportConfig(StageConfig):
    """Take over a model that somebody else has trained: Google's npz, timm's or Hugging Face's files, or our own.

    What a file does not say is as usual for its format; the fields here go before both. The file enters the identity
    by `external_digest`, not by where it lies.
    """

    kind: ClassVar[str] = "import"
    version: ClassVar[int] = 1
    output: ClassVar[str] = "model"

    path: Annotated[str, AfterValidator(_absolute)] = placement(
        ..., "an .npz, a .safetensors or a folder with model.safetensors: a path, or file:///…, s3://…, https://…"
    )
    class_names: tuple[str, ...] | None = Field(
        None, description="in the order of the last layer; the file's if absent"
    )
    num_heads: int | None = Field(None, gt=0, description="attention heads, where neither file nor sizes say it")
    activation: Literal["gelu_tanh", "gelu"] | None = Field(None, description="in place of what the file says")
    layer_norm_epsilon: float | None = Field(None, gt=0, description="in place of what the file says")
    position: Literal["none", "sincos_2d", "sincos_1d"] | None = Field(
        None, description="position embeddings of a file that has none"
    )
    resolution: int | None = Field(None, gt=0, description="in pixels, of a file without position embeddings")
    drop: tuple[str, ...] = Field((), description="arrays to leave out, as the file calls them; * for any letters")

    @classmethod
    def function(cls) -> StageFunction:
        from stages.importing.run import run

        return run

    def addresses(self) -> dict[str, str]:
        return {"path": self.path}

    def external_digest(self) -> str | None:
        """sha256 over the names, sizes and times of the files. Raises UserError where they are not there."""
        from stages.importing.files import digest

        return digest(self.path)
