import pytest

from cluster.errors import UserError
from pipeline.ingestion import ingest_workflow, recognise
from stages.ingest.config import IngestConfig


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["cat/1.jpg"], "folder"),
        (["train/cat/1.jpg", "val/cat/2.jpg"], "folder"),
        (["train-images-idx3-ubyte.gz"], "idx"),
        (["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"], "archives"),
        (["n01440764.tar", "n01443537.tar"], "archives"),
    ],
)
def test_a_folder_is_what_it_holds(tmp_path, names, kind):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert recognise(str(tmp_path)) == {"kind": kind, "path": str(tmp_path)}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("place", ["s3://bucket/", "/data/", "file:///data/"])
def test_tables_are_known_by_their_names(place, suffix):
    assert recognise(f"{place}photos{suffix}") == {"kind": "table", "path": f"{place}photos{suffix}"}


@pytest.mark.parametrize(
    "tars", ["s3://bucket/train-{000..099}.tar", "https://host/a/0.tar", "/data/*.tar", "s3://b/p"]
)
def test_tars_are_indexed_in_place(tars):
    assert recognise(tars) == {"kind": "webdataset", "shards": {"train": tars}}


def test_a_path_that_is_nothing_is_told_what_could_be(tmp_path):
    with pytest.raises(UserError, match=r"nothing: expected a folder of images for each class, .* or WebDataset tars"):
        recognise(str(tmp_path / "nothing"))


def test_the_workflow_is_named_after_the_source_and_takes_options(tmp_path):
    (tmp_path / "my photos" / "cat").mkdir(parents=True)
    options = ["ingest.longest_side=256", "ingest.max_bad=0.01"]
    workflow = ingest_workflow(f"{tmp_path}/my photos/", "s3://bucket/photos", options)
    assert workflow.name == "ingest-my-photos"
    stage = workflow.stages["ingest"]
    assert isinstance(stage, IngestConfig)
    assert (stage.name, stage.destination) == ("my-photos", "s3://bucket/photos")
    assert (stage.longest_side, stage.max_bad) == (256, 0.01)
