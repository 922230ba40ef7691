"""Settings of ingestion. Light: the sources are opened when they are needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from stages.config import Config, StageConfig, placement

if TYPE_CHECKING:
    from stages.config import StageFunction


def _absolute(path: str) -> str:
    """Workers run in folders of their own: a relative path is meant of the folder where the workflow is read."""
    return str(Path(path).expanduser().absolute())


FolderPath = Annotated[str, AfterValidator(_absolute)]


class DigitsSource(Config):
    """The 1,797 handwritten digits, 8 × 8 in 17 grey levels, that come with scikit-learn."""

    kind: Literal["digits"] = "digits"


class IdxSource(Config):
    """A folder with MNIST's four files, or those of a data set that took their names and form."""

    kind: Literal["idx"] = "idx"
    path: FolderPath = placement(..., "folder of train-images-idx3-ubyte and so on, plain or .gz; seen by all workers")


class FolderSource(Config):
    """A folder for each class, also below `train`, `val` or `validation`, and `test`."""

    kind: Literal["folder"] = "folder"
    path: FolderPath = placement(..., "folder of the classes' folders; seen by all workers")


class WebDatasetSource(Config):
    """Existing WebDataset tars, indexed where they lie.

    `shards` gives the tars of each split, for example {train: "s3://bucket/train-{000000..000099}.tar"}: a
    pattern with ranges in braces or `*`, a folder, a `.txt` file of addresses, or a list of these.
    """

    kind: Literal["webdataset"] = "webdataset"
    shards: dict[Literal["train", "validation", "test"], str | tuple[str, ...]] = Field(
        min_length=1, description="tars of each split"
    )
    label_member: str = Field("cls", description="extension of the member with the label: cls, json, txt")
    label_field: str | None = Field(None, description="where that member is JSON: the field with the label")
    multi_label: bool = Field(False, description="whether an image has a list of labels")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.label_member == "json") != (self.label_field is not None):
            raise ValueError(
                f"label_member={self.label_member} and label_field={self.label_field}: a label in JSON is in a field, "
                "for example label_member: json with label_field: label; other members are the label"
            )
        return self


SourceConfig = DigitsSource | IdxSource | FolderSource | WebDatasetSource
Source = Annotated[SourceConfig, Field(discriminator="kind")]


class IngestConfig(StageConfig):
    """Turn labelled images into shards, with splits drawn by the seed.

    A source's files enter the identity by `external_digest`, not by the folder that they lie in.
    """

    kind: ClassVar[str] = "ingest"
    version: ClassVar[int] = 2
    output: ClassVar[str] = "dataset"

    source: Source = Field(description="where the images come from")
    name: str | None = Field(None, description="name of the data set; the source's kind if absent")
    class_names: tuple[str, ...] | None = Field(None, description="in the order of the labels; the source's if absent")

    validation_fraction: float = Field(0.1, ge=0, lt=1, description="of each class, where the source has no such split")
    test_fraction: float = Field(0.1, ge=0, lt=1, description="of each class, where the source has no such split")
    held_out_classes: int = Field(0, ge=0, description="classes, drawn by the seed, that pretraining never sees")

    shard_megabytes: float = Field(256, gt=0, description="size of a tar, as far as sizes are known, in 2^20 bytes")
    samples_per_shard: int | None = Field(None, ge=1, description="most images in a tar, whatever their size")
    longest_side: int | None = Field(None, ge=1, description="larger images are made smaller, in pixels")
    quality: int | None = Field(None, ge=1, le=100, description="JPEG quality to encode all images anew with")
    verify: Literal["markers", "decode"] = Field(
        "markers", description="how images are checked: header, size and end marker, or by decoding every one"
    )
    max_pixels: int = Field(
        89_478_485, ge=1, description="larger images are refused: a file of bytes can claim any size"
    )

    max_bad: float = placement(0.001, "part of the images that may be bad before the stage fails", ge=0, le=1)
    destination: str | None = placement(
        None, "where the tars go: s3://bucket/name or file:///folder; the stage's folder if absent"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"validation_fraction={self.validation_fraction} and test_fraction={self.test_fraction} "
                "leave nothing to train on: their sum must be below 1"
            )
        if isinstance(self.source, WebDatasetSource):
            rewriting = {"longest_side": None, "quality": None, "destination": None, "held_out_classes": 0}
            changed = [name for name, default in rewriting.items() if getattr(self, name) != default]
            if changed:
                raise ValueError(
                    f"{', '.join(changed)}: tars that are indexed in place are not rewritten; leave it out"
                )
        return self

    @classmethod
    def function(cls) -> StageFunction:
        from stages.ingest.run import run

        return run

    def external_digest(self) -> str | None:
        """sha256 over the names, sizes and times of change of the source's files. Raises UserError."""
        if isinstance(self.source, WebDatasetSource):
            from stages.ingest.addresses import digest_shards

            return digest_shards(self.source)
        from stages.ingest.sources import open_source

        return open_source(self.source).digest()
