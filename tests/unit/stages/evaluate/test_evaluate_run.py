"""The evaluation of a model on the digits, by however many tasks."""

import csv
import io
import json

import numpy as np
import pytest
import torch

from cluster.errors import UserError
from stages.data.config import DataConfig
from stages.data.evaluation_loader import evaluation_batches
from stages.data.manifest import dataset_meta
from stages.data.pixels import normalise
from stages.evaluate.classes import NONE
from stages.evaluate.config import EvaluateConfig
from stages.evaluate.run import run
from stages.evaluate.task import _known
from tests.unit.stages.models.outputs import commit_model, random_model

NAMES = [str(digit) for digit in range(10)]


@pytest.fixture(scope="module")
def digits(ingested_digits):
    """The stages, the data set, and a model of all ten digits."""
    stages, dataset = ingested_digits
    model = random_model(2, num_classes=10)
    return stages, dataset, model, commit_model(stages.context("all-digits"), model, classes=NAMES)


def evaluated(digits, name, model=None, **fields):
    stages, dataset, _, own = digits
    config = EvaluateConfig.model_validate({"data": "ingest", "from": "pretrain", **fields})
    return run(config, {"data": dataset, "model": model or own}, stages.context(f"evaluate-{name}"))


def truth(digits, splits):
    """Labels and predictions of all images, one after the other."""
    stages, dataset, model, _ = digits
    labels, found = [], []
    for batch in evaluation_batches(
        stages.storage, dataset, splits, resolution=8, batch=64, rank=0, world_size=1, classes=range(10),
        config=DataConfig(),
    ):  # fmt: skip
        with torch.inference_mode():
            found += model(normalise(batch.images[batch.mask])).argmax(dim=1).tolist()
        labels += batch.labels[batch.mask].tolist()
    return np.array(labels), np.array(found)


def test_each_image_of_the_test_splits_is_counted_once(digits):
    result = evaluated(digits, "whole")
    labels, found = truth(digits, ("test", "held_out_test"))
    assert result.metrics["test/images"] == len(labels)
    assert result.metrics["test/accuracy"] == (labels == found).mean()
    assert result.metrics["test/accuracy_top5"] > result.metrics["test/accuracy"]
    (row,) = result.tables["evaluation"]
    assert (row["splits"], row["classes"]) == ("test + held_out_test", "by name")
    stages, *_ = digits
    rows = list(csv.DictReader(io.StringIO(stages.storage.read(result.output.key("classes.csv")).decode())))
    assert [(row["class"], int(row["images"]), int(row["right"])) for row in rows] == [
        (NAMES[label], (labels == label).sum(), ((labels == label) & (found == label)).sum()) for label in range(10)
    ]
    pairs = csv.DictReader(io.StringIO(stages.storage.read(result.output.key("confusions.csv")).decode()))
    assert sum(int(row["images"]) for row in pairs) == len(labels)
    worst = [row["accuracy"] for row in result.tables["worst_classes"]]
    assert worst == sorted(worst)
    for name in ("calibration.png", "confusions.png"):
        assert stages.storage.read(result.output.key(name)).startswith(b"\x89PNG")


def test_the_number_of_tasks_and_the_batch_change_no_count(digits):
    stages, *_ = digits
    whole, parts = (
        evaluated(digits, name, splits=["train"], images_per_task=size, batch=batch)
        for name, size, batch in (("one", 10_000, 256), ("many", 97, 31))
    )
    for name in ("classes.csv", "confusions.csv"):
        assert stages.storage.read(whole.output.key(name)) == stages.storage.read(parts.output.key(name))
    assert whole.metrics["train/accuracy"] == parts.metrics["train/accuracy"]
    assert whole.metrics == pytest.approx(parts.metrics, rel=1e-6)


def test_a_model_of_some_classes_is_evaluated_on_those(digits):
    stages, dataset, *_ = digits
    known = [label for label in range(10) if label not in dataset_meta(dataset).held_out]
    model = commit_model(stages.context("seven"), random_model(3), class_ids=known, trained_on=dataset.digest)
    result = evaluated(digits, "seven", model)
    (row,) = result.tables["evaluation"]
    assert (row["splits"], row["classes"]) == ("test", "as it was trained")
    assert result.metrics["test/images"] == dataset_meta(dataset).split("test").count
    with pytest.raises(UserError, match="images of 3 classes that the model does not have, such as"):
        evaluated(digits, "held-out", model, splits=["held_out_test"])


def test_outputs_without_names_are_taken_by_their_order_and_others_refused(digits):
    stages, *_ = digits
    unnamed = commit_model(stages.context("unnamed"), random_model(2, num_classes=10), classes=NAMES, imported={})
    assert evaluated(digits, "unnamed", unnamed).tables["evaluation"][0]["classes"] == "by order"
    other = commit_model(stages.context("cats"), random_model(3, num_classes=2), classes=["cat", "dog"])
    with pytest.raises(
        UserError, match=r"has 10 classes \(0, 1, 2, …\), and none is one of the model's 2 \(cat, dog\)"
    ):
        evaluated(digits, "cats", other)


def test_several_labels_of_an_image_become_the_models_outputs():
    labels = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    # The model has the third class as its first output, the first as its last, and not the second.
    found = _known(labels, (3, NONE, 0), 4, ("a", "b", "c"))
    assert found.tolist() == [[1, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0]]
    # An image with no other label would look like one without any, and leave the count.
    with pytest.raises(UserError, match="images of 1 classes that the model does not have, such as b"):
        _known(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), (3, NONE, 0), 4, ("a", "b", "c"))


def test_mistakes_get_one_clear_message(digits):
    stages, *_ = digits
    with pytest.raises(UserError, match=r"splits=\['tests'\]: data set 'digits' has images in train"):
        evaluated(digits, "tests", splits=["tests"])
    masked = commit_model(stages.context("masked"), random_model(3, num_classes=0))
    with pytest.raises(UserError, match="the model has no classes: it has learned from masked patches"):
        evaluated(digits, "masked", masked)


def test_the_output_says_what_it_is_of(digits):
    stages, *_ = digits
    result = evaluated(digits, "said", splits=["test"])
    manifest = json.loads(stages.storage.read(f"{result.output.prefix}/MANIFEST.json"))
    assert manifest["kind"] == "evaluation"
    assert manifest["meta"]["splits"] == ["test"]
    assert manifest["meta"]["metrics"] == result.metrics
