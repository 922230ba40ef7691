"""The stage, without the runner, over networks that are really trained, fine-tuned and evaluated."""

from __future__ import annotations

import io
import statistics

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.config import parse_workflow
from pipeline.plan import Question, plan
from stages.context import read_output
from stages.scaling.config import ScalingConfig
from tests.unit.stages.models.outputs import file_storage
from tests.unit.stages.scaling.conftest import Trained, read_rows, scaled

NAMES = {f"{name}.{form}" for name in ("compute", "data", "agreement") for form in ("png", "csv")}
COLUMNS = ("network", "train_images", "images_seen", "exaflops", "models")


@pytest.fixture(scope="module")
def result(trained: Trained):
    return scaled(trained.storage, trained.pretrained, trained.finetuned, trained.fewshot)


def test_a_model_tells_how_many_images_it_was_trained_on_and_what_it_began_with(trained):
    counts = {name: output.meta["train_images"] for name, output in trained.pretrained.items()}
    assert counts["a"] == counts["c"] > 3 * counts["b"] > 0
    assert counts["b"] == counts["d"] == counts["e"]
    began = {output.meta["pretrained"] for output in trained.finetuned.values()}
    assert began == {output.digest for output in trained.pretrained.values()}
    assert not any("pretrained" in output.meta for output in trained.pretrained.values())
    # Fine-tuning is on the held-out classes too.
    assert all(output.meta["train_images"] > counts["a"] for output in trained.finetuned.values())


def test_every_accuracy_stands_beside_the_model_that_it_is_of(trained, result):
    found = {row["model"]: row for row in read_rows(trained.storage, result, "agreement.csv")}
    assert found.keys() == trained.accuracies.keys()
    for name, (finetuned, fewshot) in trained.accuracies.items():
        assert (float(found[name]["finetuned"]), float(found[name]["fewshot"])) == (finetuned, fewshot)


def test_seeds_of_the_same_are_one_point_with_a_deviation(trained, result):
    rows = result.tables["scaling"]
    assert [(row["network"], row["models"]) for row in rows] == [
        ("ViT-16x1/4", 1), ("ViT-16x1/4", 1), ("ViT-32x1/4", 2), ("ViT-32x1/4", 1)
    ]  # fmt: skip
    repeated = rows[2]
    for place, kind in enumerate(("finetuned", "fewshot")):
        values = [trained.accuracies[name][place] for name in ("d", "e")]
        assert repeated[kind] == pytest.approx(statistics.fmean(values), rel=1e-12)
        assert repeated[f"{kind}_deviation"] == pytest.approx(statistics.stdev(values), rel=1e-12)
        assert repeated[f"{kind}_models"] == 2
        assert rows[0][f"{kind}_deviation"] is None
    for name in ("compute.csv", "data.csv"):
        stored = read_rows(trained.storage, result, name)
        assert [tuple(row[key] for key in COLUMNS) for row in stored] == [
            tuple(str(row[key]) for key in COLUMNS) for row in rows
        ]


def test_compute_is_what_plan_says(trained, result, tmp_path):
    config = trained.configs["c"].model_dump(mode="json", by_alias=True, exclude_none=True)
    stages = {"x": {"kind": "ingest", "source": {"kind": "digits"}}, "c": {"kind": "pretrain", **config}}
    flow = parse_workflow(yaml.safe_dump({"name": "one", "stages": stages}), "one.yaml")
    planned = plan(file_storage(tmp_path), flow, Question(classes=7, images=1000))
    work = next(stage.work for stage in planned if stage.name == "c")
    whole = next(row for row in result.tables["scaling"] if row["network"] == "ViT-32x1/4" and row["models"] == 1)
    assert (whole["exaflops"], whole["images_seen"]) == (work["exaflops"], work["images"])
    assert result.metrics["exaflops"] == pytest.approx(
        sum(row["exaflops"] * row["models"] for row in result.tables["scaling"]), rel=1e-12
    )
    assert result.metrics["models"] == 5


def test_every_figure_has_its_numbers_and_is_900_pixels_wide(trained, result):
    output = read_output(trained.storage, result.output.prefix)
    assert output.kind == ScalingConfig.output == "figures"
    assert {entry["path"] for entry in output.manifest["files"]} == NAMES
    for name in ("compute.png", "data.png", "agreement.png"):
        pixels = np.asarray(Image.open(io.BytesIO(trained.storage.read(output.key(name)))).convert("RGB"))
        assert pixels.shape[1] == 900
        # Ink of both networks' colours.
        for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
            assert (np.abs(pixels.astype(int) - colour).max(axis=-1) < 45).sum() > 50
    assert [row["figure"] for row in result.tables["figures"]] == ["compute.png", "data.png", "agreement.png"]


def test_the_same_inputs_give_the_same_bytes(trained, result):
    again = scaled(trained.storage, trained.pretrained, trained.finetuned, trained.fewshot)
    assert again.output.digest == result.output.digest
    assert (again.metrics, again.tables) == (result.metrics, result.tables)


def test_without_fine_tuning_the_figures_have_one_panel(trained):
    found = scaled(trained.storage, trained.pretrained, {}, trained.fewshot, shots=1)
    assert {entry["path"] for entry in found.output.manifest["files"]} == NAMES - {"agreement.png", "agreement.csv"}
    row = read_rows(trained.storage, found, "compute.csv")[0]
    assert list(row) == [*COLUMNS, "fewshot", "fewshot_deviation", "fewshot_models"]
    compute, _, agreement = (row["of"] for row in found.tables["figures"])
    assert compute == (
        "accuracy against exaFLOPs of pretraining (few-shot: 4 points); bars are standard deviations over repeats; "
        "no fine-tuned panel, for want of two"
    )
    assert agreement == "left out: it needs two models or more with both few-shot and fine-tuned accuracy"
    assert "spearman" not in found.metrics
