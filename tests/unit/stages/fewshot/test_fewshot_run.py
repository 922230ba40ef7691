import io
import itertools
import json
import math
import statistics

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from sklearn.datasets import load_digits
from sklearn.linear_model import Ridge

from cluster.errors import UserError
from stages.context import read_output
from stages.data.manifest import base_folder, dataset_meta
from stages.fewshot.config import FewshotConfig
from stages.fewshot.figure import STYLES, accuracy_figure
from stages.fewshot.run import choose_class_sets
from stages.frozen.store import FeatureSet
from stages.models.initialize import initialize
from stages.models.vit import VisionTransformer
from tests.unit.stages.models.outputs import random_model
from tests.unit.stages.shards import samples

SHOTS, DRAWS = (1, 2, 10), 3
KINDS = ("features", "untrained", "pixels")
ROW_KEYS = {
    *("data", "class_set", "features", "classifier", "shots", "accuracy", "standard_error", "regularisation"),
    *("draws", "classes", "test_images"),
}


@pytest.fixture(scope="module")
def model():
    """In place of a trained network: every tensor random, so unlike the untrained one. A feature is 16 numbers."""
    return random_model(0, head="mlp_tanh")


@pytest.fixture(scope="module")
def result(evaluation, model):
    # 20 and 100 images are above the 17 columns of the features, 10 are below, and all are below the pixels' 193.
    return evaluation.run(evaluation.committed(model), shots=(10, 1, 2))


@pytest.fixture(scope="module")
def stored(evaluation, result):
    """What the stage left in storage: arrays and tables."""
    output = result.output
    (meta,) = json.loads(evaluation.storage.read(output.key("features.json"))).values()
    features = FeatureSet(storage=evaluation.storage, folder=base_folder(output), meta=meta)
    arrays = {}
    for kind in KINDS:
        for part, images in zip(("pool", "test"), features.load(kind), strict=True):
            arrays |= {f"{part}/{kind}": images.features, f"{part}/labels": images.labels}
    return arrays, json.loads(evaluation.storage.read(output.key("table.json")))


def members(evaluation):
    """The labels of each set of classes."""
    held_out = dataset_meta(evaluation.dataset).held_out
    seen = [label for label in range(10) if label not in held_out]
    return {"all": list(range(10)), "seen": seen, "held_out": list(held_out)}


def accuracies(arrays, kind, classes, shots):
    """Accuracy of every draw from the stored features, by scikit-learn."""
    pool, test = arrays[f"pool/{kind}"].astype(np.float64), arrays[f"test/{kind}"].astype(np.float64)
    truth, found = arrays["test/labels"], []
    for seed in range(DRAWS):
        generator = np.random.default_rng(seed)
        chosen = [generator.permutation(np.flatnonzero(arrays["pool/labels"] == c))[:shots] for c in classes]
        few = pool[np.concatenate(chosen)]
        labels = np.repeat(classes, shots)

        def columns(rows, few=few):
            return np.hstack([(rows - few.mean(axis=0)) / (few.std(axis=0) + 1e-5), np.full((len(rows), 1), 100.0)])

        ridge = Ridge(alpha=1024.0, fit_intercept=False, solver="svd")
        ridge.fit(columns(few), np.where(labels[:, None] == np.array(classes), 1.0, -1.0))
        predicted = np.array(classes)[ridge.predict(columns(test)).argmax(axis=1)]
        inside = np.isin(truth, classes)
        found.append(float((predicted == truth)[inside].mean()))
    return found


def test_there_is_one_row_for_each_set_of_classes_kind_and_number_of_shots(evaluation, result):
    rows = result.tables["fewshot"]
    found = [(row["class_set"], row["features"], row["shots"]) for row in rows]
    assert found == list(itertools.product(("all", "seen", "held_out"), KINDS, SHOTS))
    assert all(row.keys() == ROW_KEYS for row in rows)
    expected = {f"{kind}/{name}/{shots}_shot" for name, kind, shots in found}
    assert result.metrics.keys() == expected
    splits = dataset_meta(evaluation.dataset).splits
    images = {"seen": splits["test"].count, "held_out": splits["held_out_test"].count}
    images["all"] = sum(images.values())
    for row in rows:
        assert (row["test_images"], row["draws"]) == (images[row["class_set"]], DRAWS)
        assert row["classes"] == len(members(evaluation)[row["class_set"]])
        assert result.metrics[f"{row['features']}/{row['class_set']}/{row['shots']}_shot"] == row["accuracy"]


def test_every_figure_follows_from_the_stored_features_alone(evaluation, result, stored):
    arrays, tables = stored
    assert tables == {name: list(rows) for name, rows in result.tables.items()}
    by_row = {}
    for row in tables["fewshot"]:
        name, kind, shots = row["class_set"], row["features"], row["shots"]
        values = accuracies(arrays, kind, members(evaluation)[name], shots)
        by_row[name, kind, shots] = values
        assert row["accuracy"] == pytest.approx(statistics.fmean(values), abs=1e-12)
        assert row["standard_error"] == pytest.approx(statistics.stdev(values) / math.sqrt(DRAWS), abs=1e-12)
    assert len({row["accuracy"] for row in tables["fewshot"]}) > 20
    assert [(r["class_set"], r["baseline"], r["shots"]) for r in tables["comparison"]] == list(
        itertools.product(("all", "seen", "held_out"), KINDS[1:], SHOTS)
    )
    for row in tables["comparison"]:
        name, shots = row["class_set"], row["shots"]
        pairs = zip(by_row[name, "features", shots], by_row[name, row["baseline"], shots], strict=True)
        differences = [ours - theirs for ours, theirs in pairs]
        error = statistics.stdev(differences) / math.sqrt(DRAWS)
        assert row["difference"] == pytest.approx(statistics.fmean(differences), abs=1e-12)
        assert row["standard_error"] == pytest.approx(error, abs=1e-12)
        assert row["standard_errors"] == pytest.approx(statistics.fmean(differences) / error, rel=1e-9)


def test_more_images_tell_more(result):
    # Real digits and raw pixels: 10 of each class against 1.
    assert result.metrics["pixels/all/10_shot"] > result.metrics["pixels/all/1_shot"] + 0.1 > 0.4


def images_in_order(evaluation, splits):
    """Numbers of the digits that the splits' shards hold, read by plain webdataset."""
    found = [sample for split in splits for sample in samples(evaluation.storage, evaluation.dataset, split)]
    return [int(sample["__key__"]) for sample in found]


def test_features_are_those_of_the_digits_that_were_not_kept_for_validation(evaluation, stored, model):
    arrays, _ = stored
    flat, targets = (np.asarray(part) for part in load_digits(return_X_y=True))
    digits = flat.reshape(-1, 8, 8)
    untrained = VisionTransformer(model.config, 8, 7).eval()
    initialize(untrained, 5)
    for part, splits in (("pool", ("train", "held_out")), ("test", ("test", "held_out_test"))):
        numbers = images_in_order(evaluation, splits)
        assert np.array_equal(arrays[f"{part}/labels"], targets[numbers])
        grey = np.rint(digits[numbers] * 255 / 16).astype(np.float32)
        images = np.repeat(((grey - 127.5) / 127.5)[:, None], 3, axis=1)
        assert np.array_equal(arrays[f"{part}/pixels"], images.reshape(len(numbers), -1))
        with torch.inference_mode():
            for kind, network in (("features", model), ("untrained", untrained)):
                expected = network.features(torch.from_numpy(images)).numpy()
                np.testing.assert_allclose(arrays[f"{part}/{kind}"], expected, rtol=0, atol=1e-5)
    assert all(array.dtype == np.float32 for name, array in arrays.items() if not name.endswith("labels"))


def test_a_network_that_learned_nothing_is_its_own_baseline(evaluation, model):
    network = VisionTransformer(model.config, 8, 7).eval()
    initialize(network, 5)
    tables = evaluation.run(evaluation.committed(network), baselines=("untrained",)).tables
    rows = {(row["class_set"], row["features"], row["shots"]): row for row in tables["fewshot"]}
    assert len(rows) == 3 * 2 * 3
    for (name, kind, shots), row in rows.items():
        assert row == {**rows[name, "features", shots], "features": kind}
    for row in tables["comparison"]:
        assert (row["difference"], row["standard_error"], row["standard_errors"]) == (0.0, 0.0, None)


def test_a_second_run_gives_the_same_bytes(evaluation, model, result):
    # Batches of other sizes would round otherwise: `batch` is placement, and is the same here.
    again = evaluation.run(evaluation.committed(model), attempt=2, shots=(10, 1, 2))
    assert again.output.digest == result.output.digest
    assert again.output.prefix != result.output.prefix
    for entry in result.output.manifest["files"]:
        one, other = (evaluation.storage.read(output.key(entry["path"])) for output in (result.output, again.output))
        assert one == other


def test_the_output_is_committed_with_its_tables(evaluation, result):
    output = read_output(evaluation.storage, result.output.prefix)
    assert output.digest == result.output.digest
    assert output.kind == FewshotConfig.output == "evaluation"
    assert output.meta["fewshot"] == result.tables["fewshot"]
    assert output.meta["skipped_class_sets"] == []
    assert [entry["path"] for entry in output.manifest["files"]] == [
        "features.json",
        "fewshot.csv",
        "fewshot.png",
        "table.json",
    ]
    lines = evaluation.storage.read(output.key("fewshot.csv")).decode().splitlines()
    assert lines[0].split(",") == list(result.tables["fewshot"][0])
    assert len(lines) == 1 + len(result.tables["fewshot"])


def width_and_colours(png):
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=np.int64)
    return pixels.shape[1], {f"#{colour:06X}" for colour in np.unique(pixels @ [0x10000, 0x100, 1]).tolist()}


def test_the_figure_is_a_png_with_a_panel_for_each_set_of_classes(evaluation, result, model):
    wide, found = width_and_colours(evaluation.storage.read(result.output.key("fewshot.png")))
    assert {colour for colour, *_ in STYLES.values()} <= found
    alone = evaluation.run(evaluation.committed(model), class_sets=("seen",), baselines=(), shots=(1,))
    narrow, found = width_and_colours(evaluation.storage.read(alone.output.key("fewshot.png")))
    assert wide == 3 * narrow
    assert {colour for colour, *_ in STYLES.values()} & found == {STYLES["features"][0]}
    assert [row["features"] for row in alone.tables["fewshot"]] == ["features"]
    assert alone.output.meta["skipped_class_sets"] == ["all", "held_out"]


def test_many_data_sets_have_their_panels_below_each_other(result):
    rows = [{**row, "data": data} for data in "abcde" for row in result.tables["fewshot"] if row["class_set"] == "all"]
    five, three = (Image.open(io.BytesIO(accuracy_figure(own))) for own in (rows, rows[: len(rows) * 3 // 5]))
    assert five.size == (three.width, 2 * three.height)


def described(evaluation, model):
    """What features of the data set by a model say of themselves, as far as sets of classes depend on it."""
    data = {"name": "digits", "classes": list(range(10)), "held_out": list(dataset_meta(evaluation.dataset).held_out)}
    own = {"trained_on": model.meta["trained_on"], "class_ids": model.meta["class_ids"]}
    meta = {"data": data, "dataset": evaluation.dataset.digest, **own}
    return FeatureSet(storage=evaluation.storage, folder="", meta=meta)


def test_sets_of_classes_depend_on_what_the_model_was_trained_on(evaluation, model):
    foreign = evaluation.committed(model, trained_on="0" * 64)
    own, others = described(evaluation, evaluation.committed(model)), described(evaluation, foreign)
    found = choose_class_sets(evaluation.config(), own)
    assert {name: list(labels) for name, labels in found.items()} == members(evaluation)
    assert list(choose_class_sets(evaluation.config(class_sets=("held_out", "all")), own)) == ["held_out", "all"]
    assert list(choose_class_sets(evaluation.config(), others)) == ["all"]
    with pytest.raises(
        UserError, match=r"class_sets=\['all', 'held_out'\]: held_out needs a model .* possible here: all"
    ):
        evaluation.run(foreign, class_sets=("all", "held_out"))


def test_a_model_that_was_trained_on_the_held_out_classes_has_only_all(evaluation, model):
    """As fine-tuning leaves it: on the same data set, with every class."""
    tuned = evaluation.committed(model, class_ids=list(range(10)), num_classes=7)
    assert list(choose_class_sets(evaluation.config(), described(evaluation, tuned))) == ["all"]


def test_a_set_without_test_images_is_refused_by_name(evaluation, model):
    few = evaluation.ingested(held_out_classes=1, test_fraction=0.0028, seed=3)
    (held_out,) = few.meta["held_out"]
    ids = [label for label in range(10) if label != held_out]
    trained = evaluation.committed(model, trained_on=few.digest, class_ids=ids)
    with pytest.raises(UserError, match="no test images of the held_out classes"):
        evaluation.run(trained, dataset=few, shots=(1,))


def test_equal_differences_have_no_ratio(evaluation, model):
    """With more shots than images, every draw is the same set in another order."""
    tables = evaluation.run(evaluation.committed(model), shots=(10_000,), draws=3, class_sets=("seen",)).tables
    assert all(row["standard_errors"] is None and row["difference"] != 0 for row in tables["comparison"])


def test_without_held_out_classes_there_is_one_set(evaluation, model):
    whole = evaluation.ingested(held_out_classes=0)
    trained = evaluation.committed(model, trained_on=whole.digest)
    result = evaluation.run(trained, dataset=whole, shots=(1,), baselines=())
    assert [row["class_set"] for row in result.tables["fewshot"]] == ["all"]
    assert result.output.meta["skipped_class_sets"] == ["seen", "held_out"]
    with pytest.raises(UserError, match="seen needs a model"):
        evaluation.run(trained, dataset=whole, class_sets=("seen",))


def test_another_resolution_and_a_data_set_without_test_images_are_refused(evaluation, model):
    output = evaluation.committed(model)
    with pytest.raises(UserError, match="resolution=16: the model has 8"):
        evaluation.run(output, resolution=16)
    with pytest.raises(UserError, match="'digits' has none of the splits test, held_out_test"):
        evaluation.run(output, dataset=evaluation.ingested(test_fraction=0.0))


def test_inputs_in_each_others_place_are_refused(evaluation, model):
    output = evaluation.committed(model)
    with pytest.raises(UserError, match="is a model, not a dataset"):
        evaluation.run(output, dataset=output)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shots": (5, 0)}, r"shots=\(5, 0\) must be different numbers of at least 1, for example"),
        ({"shots": (5, 1, 5)}, r"shots=\(5, 1, 5\) must be different"),
        ({"shots": ()}, "at least 1 item"),
        ({"draws": 1}, "greater than or equal to 2"),
        ({"regularisation": 0.0}, "greater than 0"),
        ({"class_sets": ("unseen",)}, "class_sets"),
        ({"baselines": ("features",)}, "baselines"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        FewshotConfig.model_validate({"data": "ingest", "from": "pretrain", **fields})
