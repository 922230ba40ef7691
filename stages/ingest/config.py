"""Settings of ingestion. Light: the sources are opened when they are needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from stages.config import Config, StageConfig, placement

if TYPE_CHECKING:
    from cluster.storage import Storage
    from stages.config import StageFunction
    from stages.context import Output


def _absolute(path: str) -> str:
    """Workers run in folders of their own: a relative path is meant of the folder where the workflow is read."""
    return str(Path(path).expanduser().absolute())


FolderPath = Annotated[str, AfterValidator(_absolute)]


def _absolute_address(address: str) -> str:
    return address if "://" in address else _absolute(address)


Address = Annotated[str, AfterValidator(_absolute_address)]
"""A path on a disk that all workers see, `file:///…`, `s3://…` or, to read from, `https://…`."""

SPLIT_NAMES = {**{name: name for name in ("train", "validation", "test")}, "val": "validation", "valid": "validation"}
"""What data sets call the splits."""

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


class DigitsSource(Config):
    """The 1,797 handwritten digits, 8 × 8 in 17 grey levels, that come with scikit-learn."""

    kind: Literal["digits"] = "digits"


class IdxSource(Config):
    """A folder with MNIST's four files, or those of a data set that took their names and form."""

    kind: Literal["idx"] = "idx"
    path: FolderPath = placement(..., "folder of train-images-idx3-ubyte and so on, plain or .gz; seen by all workers")


class FolderSource(Config):
    """A folder for each class, also below `train`, `validation` (`val`, `valid`), and `test`."""

    kind: Literal["folder"] = "folder"
    path: FolderPath = placement(..., "folder of the classes' folders; seen by all workers")
    class_map: FolderPath | None = placement(None, "CSV, TSV or JSON with the names of the classes by their folders'")


class TableSource(Config):
    """A table with a row for each image: its address, or in Parquet its bytes, and its label or labels.

    A label is an integer or a name. An image has several where the column holds lists, or texts with a
    `label_separator`. In CSV and TSV labels are integers where all of them are written as such.
    """

    kind: Literal["table"] = "table"
    path: Address = placement(..., "the .csv, .tsv, .jsonl or .parquet; all workers see it")
    base: Address | None = placement(None, "what relative addresses of images are meant of; the table's folder")
    image: str = Field("image", description="column with the images: addresses, or in Parquet bytes")
    label: str = Field("label", description="column with the labels")
    label_separator: str | None = Field(None, min_length=1, description="between the labels of one image, such as |")
    split: str | None = Field(
        "split", description="column with train, validation, val, valid or test; a table need not have `split`"
    )

    class_map: FolderPath | None = placement(None, "CSV, TSV or JSON with the names of the classes by the table's")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.path.lower().endswith(TABLE_SUFFIXES):
            raise ValueError(f"path={self.path}: expected a table that ends in one of {', '.join(TABLE_SUFFIXES)}")
        return self


class ArchivesSource(Config):
    """ImageNet as it is downloaded, or any folder with one tar for each class, or any tar of such tars.

    A folder with ILSVRC2012_img_train.tar may hold ILSVRC2012_img_val.tar too, and with it one of
    ILSVRC2012_devkit_t12.tar.gz, imagenet_2012_validation_synset_labels.txt and LOC_val_solution.csv.
    Classes are in the order of their archives' names.
    """

    kind: Literal["archives"] = "archives"
    path: FolderPath = placement(..., "folder of the tars, or one tar of tars; seen by all workers")
    validation_as: Literal["validation", "test"] = Field(
        "test", description="split of ILSVRC's validation images; papers report on them as test"
    )
    class_map: FolderPath | None = placement(
        None, "CSV, TSV or JSON with the names of the classes by those of their tars; LOC_synset_mapping.txt if there"
    )
    expected_classes: int | None = placement(None, "number of classes that there must be", ge=1)


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


SourceConfig = DigitsSource | IdxSource | FolderSource | TableSource | ArchivesSource | WebDatasetSource
Source = Annotated[SourceConfig, Field(discriminator="kind")]


_REWRITING = (
    *("validation_fraction", "test_fraction", "splits_file", "held_out_classes", "shard_megabytes"),
    *("samples_per_shard", "longest_side", "quality", "destination"),
)
"""Fields that say nothing for tars that stay as they are."""


class ExpectedData(Config):
    """How large the data set is that a workflow was written for."""

    train_images: int = Field(ge=1, description="images of the train split")
    classes: int = Field(ge=1, description="classes")


class IngestConfig(StageConfig):
    """Turn labelled images into shards, with splits drawn by the seed.

    A source's files enter the identity by `external_digest`, not by the folder that they lie in.
    """

    kind: ClassVar[str] = "ingest"
    version: ClassVar[int] = 3
    output: ClassVar[str] = "dataset"

    source: Source = Field(description="where the images come from")
    name: str | None = Field(None, description="name of the data set; the source's kind if absent")
    class_names: tuple[str, ...] | None = Field(None, description="in the order of the labels; the source's if absent")

    validation_fraction: float = Field(0.1, ge=0, lt=1, description="of each class, where the source has no such split")
    test_fraction: float = Field(0.1, ge=0, lt=1, description="of each class, where the source has no such split")
    splits_file: FolderPath | None = placement(
        None, "CSV of names and splits, which go before the source's own; seen where the stage is planned"
    )
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

    expected: ExpectedData | None = placement(
        None, "what the workflow was written for: `plan` counts with it before there is a data set, and tells the odds"
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
            changed = [name for name in _REWRITING if getattr(self, name) != type(self).model_fields[name].default]
            if changed:
                raise ValueError(
                    f"{', '.join(changed)}: tars that are indexed in place are not rewritten, and their splits are "
                    "those of source.shards; leave it out"
                )
        return self

    @classmethod
    def function(cls) -> StageFunction:
        from stages.ingest.run import run

        return run

    def addresses(self) -> dict[str, str]:
        if isinstance(self.source, WebDatasetSource):
            given = self.source.shards.items()
            return {
                f"source.shards.{split}": tars if isinstance(tars, str) else " ".join(tars) for split, tars in given
            }
        found = {"source.path": getattr(self.source, "path", None), "splits_file": self.splits_file}
        return {field: address for field, address in found.items() if address is not None}

    def external_digest(self) -> str | None:
        """sha256 over the names, sizes and times of the source's files, and over `splits_file`. Raises UserError."""
        if isinstance(self.source, WebDatasetSource):
            from stages.ingest.addresses import digest_shards

            return digest_shards(self.source)
        from stages.ingest.sources import open_source

        digest = open_source(self.source).digest()
        if self.splits_file is None:
            return digest
        from stages.ingest.splits_file import digest_with

        return digest_with(digest, self.splits_file)

    def is_in_place(self, storage: Storage, output: Output) -> bool:
        """Whether the tars are at the destination. Those indexed where they lie are in the external digest."""
        if isinstance(self.source, WebDatasetSource):
            return True
        from stages.ingest.destination import is_in_place

        return is_in_place(self, storage, output)
