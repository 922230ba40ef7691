"""`patchline init`: what it sees of images, what it proposes for them, and that the file runs."""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
from pathlib import Path

import numpy as np
import pexpect
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from PIL import Image

from cluster.errors import UserError
from cluster.gpus import Gpu
from cluster.storage import open_storage
from pipeline import api
from pipeline.beginning.file import workflow_text
from pipeline.beginning.here import Here, here
from pipeline.beginning.look import Seen, look
from pipeline.beginning.proposal import Answers, propose
from pipeline.beginning.words import seen_in_words
from pipeline.beginning.writing import init
from pipeline.config import load_workflow, parse_workflow
from pipeline.plan import plan
from pipeline.settings import Settings, resolve
from stages.ingest.config import FolderSource
from stages.ingest.sources import open_source
from stages.ingest.sources.base import SPLITS

TWO_CORES = Here(cores=2, memory=8 * 2**30, flops=2e11)
EIGHT_GPUS = Here(cores=64, memory=2**39, gpus=(Gpu(name="H100", memory=80 * 10**9),) * 8)


def photos(folder: Path, counts: dict[str, int], size: tuple[int, int] = (60, 40)) -> Path:
    """A folder with so many images below each of these folders, of chance."""
    drawn = np.random.default_rng(0)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = drawn.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@given(
    st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), st.integers(1, 3), min_size=1),
    st.lists(st.sampled_from(["val", "test"]), unique=True),
)
@settings(max_examples=15, deadline=None)
def test_what_is_seen_is_what_ingestion_finds(tmp_path_factory, classes: dict[str, int], others: list[str]):
    folder = tmp_path_factory.mktemp("photos")
    tops = ["train", *others] if others else [""]
    photos(folder, {f"{top}/{name}".lstrip("/"): count for top in tops for name, count in classes.items()})
    (folder / tops[0] / "empty").mkdir()
    (folder / tops[0] / "a.txt").write_text("no image")
    seen = look(str(folder))
    listing = open_source(FolderSource(path=str(folder))).listing()
    counts = {name: int((listing.splits == number).sum()) for number, name in enumerate(SPLITS)}
    assert {"train": seen.train, "validation": 0, "test": 0, **seen.others} == counts
    assert (seen.classes, seen.exact, seen.side) == (len(listing.classes), True, 40)
    assert sorted(seen.per_class) == sorted(classes.values())


def test_a_large_folder_is_estimated_in_time_from_the_classes_that_were_counted(tmp_path):
    folder = photos(tmp_path, {f"class{number}": 7 for number in range(30)})
    seen = look(str(folder), seconds=0)
    assert (seen.train, seen.classes, seen.exact) == (210, 30, False)
    assert len(seen.per_class) == 1
    assert "expected" not in workflow_text(propose(Answers(images=str(folder)), seen, TWO_CORES))


def test_damaged_images_are_seen_and_told(tmp_path):
    folder = photos(tmp_path, {"cat": 4, "dog": 4})
    (folder / "cat" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    seen = look(str(folder))
    assert seen.unreadable == 1
    assert "1 of some 40 images looked at are damaged" in propose(Answers(images=""), seen, TWO_CORES).notes[0]


@given(
    per_class=st.lists(st.integers(1, 5000), min_size=2, max_size=30),
    scale=st.sampled_from([1, 1, 10, 10_000, 10_000_000]),
    side=st.none() | st.integers(1, 5000),
    others=st.dictionaries(st.sampled_from(["validation", "test"]), st.integers(1, 1000)),
    machine=st.builds(
        Here,
        cores=st.integers(1, 200),
        memory=st.none() | st.integers(2**28, 2**42),
        gpus=st.integers(0, 9).map(lambda count: (Gpu(name="A100", memory=1),) * count),
        flops=st.floats(1e8, 1e14),
    ),
    model=st.sampled_from([None, None, "Ti/16", "S/32", "H/14", "R50+B/16", "R26+S/32", "R50x1", "B/7"]),
    where=st.sampled_from(["local", "cluster", "http://head:8265"]),
    data=st.data(),
)
@settings(max_examples=150, deadline=None)
def test_whatever_is_seen_plan_accepts_the_file(
    tmp_path_factory, per_class, scale, side, others, machine, model, where, data
):
    sees = data.draw(st.none() | st.integers(2, len(per_class)))
    seen = Seen(
        source={"kind": "digits"},
        train=sum(per_class) * scale,
        others=others,
        exact=scale == 1,
        classes=len(per_class),
        per_class=tuple(count * scale for count in per_class),
        side=side,
    )
    proposal = propose(Answers(images="digits", classes=sees, model=model, where=where), seen, machine)
    workflow = parse_workflow(workflow_text(proposal), "mine.yaml")
    planned = plan(open_storage(f"file://{tmp_path_factory.mktemp('root')}"), workflow)
    left_out = (model == "R50x1") + (proposal.tested is False)
    assert [stage.action for stage in planned] == ["run"] * (5 - left_out)
    assert workflow.registration is not None
    pretrain = workflow.stages["pretrain"]
    assert pretrain.global_batch <= proposal.train
    assert workflow.stages["finetune"].resolution > pretrain.resolution
    if scale == 1 and sees is None:
        updates = max(1, round(proposal.epochs * proposal.train / pretrain.global_batch))
        assert planned[1].work["updates"] == updates


def test_more_images_get_larger_networks_and_gpus_larger_ones_than_cores():
    def proposed(images: int, machine: Here):
        seen = Seen(source={"kind": "digits"}, train=images, classes=10, per_class=(images // 10,) * 10, side=500)
        return propose(Answers(images="digits"), seen, machine)

    on_cores = proposed(5_000, TWO_CORES)
    assert (on_cores.resolution, on_cores.workers, on_cores.gpus) == (64, 2, False)
    on_gpus = [proposed(images, EIGHT_GPUS) for images in (5_000, 100_000, 1_200_000, 50_000_000)]
    assert [found.model for found in on_gpus] == ["Ti/16", "S/16", "B/16", "L/16"]
    assert all((found.resolution, found.workers, found.gpus) == (224, 8, True) for found in on_gpus)
    assert proposed(400, TWO_CORES).epochs > proposed(20_000, TWO_CORES).epochs
    assert proposed(500, TWO_CORES).seconds < 20 * 60


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"classes": 11}, "--classes 11: expected all, or 2 to 3: there are 3 classes"),
        ({"classes": 1}, "--classes 1: expected all, or 2 to 3"),
        ({"model": "B/sixteen"}, "--model B/sixteen: expected one of Ti, S, B, L"),
        ({"where": "here"}, "--where here: expected local, cluster, or the address of a Ray cluster such as http://"),
        ({"to": "nowhere/mine.yaml"}, "--to nowhere/mine.yaml: expected a file in a folder that is there"),
    ],
)
def test_an_answer_that_cannot_be_is_refused_with_what_can(tmp_path, answers, expected):
    folder = photos(tmp_path, {"cat": 3, "dog": 3, "owl": 3})
    with pytest.raises(UserError) as told:
        init(str(folder), **{"to": tmp_path / "mine.yaml", **answers})
    assert expected in str(told.value)
    assert not (tmp_path / "mine.yaml").exists()


def test_one_class_and_no_class_are_refused(tmp_path):
    with pytest.raises(UserError, match="has one class: expected at least two, each in a folder of its own"):
        init(str(photos(tmp_path / "one", {"cat": 3})), tmp_path / "mine.yaml")
    with pytest.raises(UserError, match="has no images to train on: put them into a folder for each class"):
        init(str(photos(tmp_path / "none", {".": 3})), tmp_path / "mine.yaml")
    with pytest.raises(UserError, match="has test and val and no train"):
        init(str(photos(tmp_path / "two", {"test/a": 1, "val/a": 1})), tmp_path / "mine.yaml")


def test_a_file_that_is_there_stays_unless_it_may_be_overwritten(tmp_path):
    folder, path = photos(tmp_path / "photos", {"cat": 3, "dog": 3}), tmp_path / "mine.yaml"
    path.write_text("mine")
    with pytest.raises(UserError, match=r"mine\.yaml: is there already: name another file, or overwrite it with --for"):
        init(str(folder), path)
    assert path.read_text() == "mine"
    init(str(folder), path, force=True)
    assert load_workflow(str(path)).stages["ingest"].source.path == str(folder)


def test_the_file_runs_and_trains_on_as_many_images_as_it_says(tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHLINE_HOME", str(tmp_path / "home"))
    folder = photos(tmp_path / "some photos: 'mine'", {"cat": 10, "dog": 9, "owl": 3}, size=(12, 12))
    proposal = init(str(folder), tmp_path / "mine.yaml", machine=TWO_CORES)
    short = ["pretrain.epochs=1", "finetune.epochs=1", "fewshot.draws=2", "analyze.images=8"]
    workflow = load_workflow(str(tmp_path / "mine.yaml"), short)
    place = resolve(root=f"file://{tmp_path}/root")
    assert api.run(workflow, place)[1] == "done"
    # The data set is of the size that the file says: else a line would tell the odds.
    planned = plan(place.storage(), workflow)
    assert [stage.action for stage in planned] == ["reuse"] * 5
    check_registered(place, "some-photos-mine")
    assert not any(stage.warnings for stage in plan(place.storage(), load_workflow(str(tmp_path / "mine.yaml"))))
    assert proposal.train == 22 - 1 - 1 - 2 - 2 - 1


def check_registered(place: Settings, name: str) -> None:
    client = MlflowClient(place.mlflow)
    champion = client.get_model_version_by_alias(name, "champion")
    assert champion.tags["patchline.stage"] == "finetune"


def test_images_too_few_for_a_test_split_have_a_file_that_runs_too(tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHLINE_HOME", str(tmp_path / "home"))
    folder = photos(tmp_path / "few", {"cat": 2, "dog": 2, "owl": 1}, size=(12, 12))
    assert not init(str(folder), tmp_path / "mine.yaml", machine=TWO_CORES).tested
    short = ["pretrain.epochs=1", "finetune.epochs=1", "analyze.examples=2", "analyze.images=2"]
    workflow = load_workflow(str(tmp_path / "mine.yaml"), short)
    assert api.run(workflow, resolve(root=f"file://{tmp_path}/root"))[1] == "done"


def tars(folder: Path) -> str:
    """Shards for training alone, as WebDataset has them."""
    paths = photos(folder / "photos", {"0": 8, "1": 8}, size=(12, 12)).glob("*/*.png")
    with tarfile.open(folder / "shard-000.tar", "w") as tar:
        for number, path in enumerate(sorted(paths)):
            tar.add(path, f"{number:03d}.png")
            label = tarfile.TarInfo(f"{number:03d}.cls")
            label.size = 1
            tar.addfile(label, io.BytesIO(path.parent.name.encode()))
    return f"{folder}/shard-{{000..000}}.tar"


def table_of_several_labels(folder: Path) -> str:
    paths = sorted(photos(folder / "photos", {"cat": 8, "dog": 8}, size=(12, 12)).glob("*/*.png"))
    rows = [{"image": str(path), "label": [path.parent.name, "animal"]} for path in paths]
    (folder / "labels.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder / "labels.jsonl")


@pytest.mark.parametrize("made", [tars, table_of_several_labels], ids=["tars", "labels"])
def test_what_fewshot_cannot_do_is_left_out_of_a_file_that_runs(tmp_path, monkeypatch, made):
    monkeypatch.setenv("PATCHLINE_HOME", str(tmp_path / "home"))
    proposal = init(made(tmp_path), tmp_path / "mine.yaml", machine=TWO_CORES)
    assert "{" not in seen_in_words(proposal.seen).replace("{000..000}", "")
    short = ["pretrain.epochs=1", "pretrain.global_batch=4", "finetune.epochs=1", "finetune.global_batch=4"]
    small = ["pretrain.save_every=2", "finetune.save_every=2", "analyze.examples=2", "analyze.images=2"]
    workflow = load_workflow(str(tmp_path / "mine.yaml"), short + small)
    assert list(workflow.stages) == ["ingest", "pretrain", "finetune", "analyze"]
    assert workflow.registration is not None
    assert api.run(workflow, resolve(root=f"file://{tmp_path}/root"))[1] == "done"


def test_in_a_terminal_it_asks_four_questions_and_takes_enter_for_what_it_proposes(tmp_path):
    photos(tmp_path / "photos", {"cat": 4, "dog": 4, "owl": 4})
    environment = {**os.environ, "PATCHLINE_HOME": str(tmp_path / "home"), "COLUMNS": "80", "TERM": "dumb"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[3])
    asked = pexpect.spawn(
        sys.executable, ["-m", "pipeline.cli", "init"], cwd=tmp_path, env=environment, encoding="utf-8", timeout=300
    )
    for question, answer in (
        ("Images.*: ", "photos"),
        (r"\nphotos: 12 images, 3 classes, about 40 pixels.*Classes of 3 that pretraining sees.*: ", "2"),
        ("Model.*: ", ""),
        ("Where.*: ", ""),
    ):
        asked.expect(question)
        asked.sendline(answer)
    asked.expect("mine.yaml is written: about")
    asked.expect("patchline submit mine.yaml --follow")
    asked.expect(pexpect.EOF)
    asked.close()
    assert asked.exitstatus == 0
    written = load_workflow(str(tmp_path / "mine.yaml"))
    assert written.stages["ingest"].held_out_classes == 1


def test_every_line_of_comment_belongs_to_yaml_and_the_cluster_is_told_apart(tmp_path):
    folder = photos(tmp_path, {"cat": 3, "dog": 3})
    text = workflow_text(propose(Answers(images="", where="http://head:8265"), look(str(folder)), TWO_CORES))
    document = yaml.safe_load(text)
    assert document["stages"]["pretrain"]["gpus_per_worker"] == 1
    assert "every machine of the cluster has to see this path" in text
    # However long the path of the images is.
    assert max(len(line) for line in text.replace(str(folder), "/data/photos").splitlines()) <= 130


def test_this_machine_has_cores_and_multiplies():
    found = here(0.02)
    assert found.cores >= 1
    assert 1e8 < found.flops < 1e16
