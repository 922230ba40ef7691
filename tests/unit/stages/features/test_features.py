"""Features as an output of their own, and few-shot stages that share them."""

import json
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from cluster.errors import UserError
from stages.context import canonical_json, read_output
from stages.features.config import FeaturesConfig
from stages.features.run import run
from stages.fewshot.config import FewshotConfig
from stages.fewshot.run import run as run_fewshot
from stages.frozen.store import read_features
from tests.unit.pipeline.interposed import interposed
from tests.unit.stages.fewshot.conftest import Evaluation
from tests.unit.stages.models.outputs import random_model, stage_context

SHOTS = (1, 5)


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    return Evaluation(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def model(evaluation):
    return evaluation.committed(random_model(0, head="mlp_tanh"))


def config(evaluation, **fields):
    cache = {"cache": str(evaluation.folder / "cache"), "loader_threads": 0}
    return FeaturesConfig.model_validate({"data": "ingest", "from": "pretrain", "threads": 1, "input": cache, **fields})


def extracted(evaluation, model, name, dataset=None, attempt=1, tasks=None, **fields):
    context = stage_context(evaluation.storage, f"stages/features/{name}", attempt)
    context = replace(context, tasks=tasks) if tasks else context
    inputs = {"data": dataset or evaluation.dataset, "model": model}
    return run(config(evaluation, **fields), inputs, context).output


def evaluated(evaluation, outputs, **fields):
    names = [f"f{i}" for i in range(len(outputs))]
    given = FewshotConfig.model_validate({"features": names, "shots": SHOTS, "draws": 3, **fields})
    inputs = {f"features.{i}": output for i, output in enumerate(outputs)}
    folder = "-".join(output.prefix.split("/")[2] for output in outputs)
    return run_fewshot(given, inputs, stage_context(evaluation.storage, f"stages/fewshot/of-{folder}"))


@pytest.fixture(scope="module")
def whole(evaluation, model):
    return extracted(evaluation, model, "whole")


def test_a_stage_of_features_gives_the_same_table(evaluation, model, whole):
    alone = evaluation.run(model, shots=SHOTS)
    shared = evaluated(evaluation, [whole])
    assert shared.tables == alone.tables
    assert shared.metrics == alone.metrics


def test_the_output_is_committed_and_says_what_it_is_of(evaluation, model, whole):
    output = read_output(evaluation.storage, whole.prefix)
    assert output.kind == FeaturesConfig.output == "features"
    assert (output.meta["dataset"], output.meta["model"]) == (evaluation.dataset.digest, model.digest)
    pool, test = read_features(evaluation.storage, output).load("features")
    splits = evaluation.dataset.meta["splits"]
    assert len(pool.labels) == splits["train"]["count"] + splits["held_out"]["count"]
    assert len(test.labels) == splits["test"]["count"] + splits["held_out_test"]["count"]


def test_any_number_of_tasks_gives_the_same_features(evaluation, model, whole):
    parts = extracted(evaluation, model, "parts", images_per_task=400)
    assert len(parts.meta["parts"]) == 5
    for kind in ("features", "untrained", "pixels"):
        sides = zip(*(read_features(evaluation.storage, output).load(kind) for output in (whole, parts)), strict=True)
        for one, other in sides:
            assert np.array_equal(one.labels, other.labels)
            np.testing.assert_allclose(one.features, other.features, rtol=0, atol=1e-5)


def test_what_a_killed_attempt_has_stored_is_used(evaluation, model):
    done = []

    def killed(function, items, *, label, **place):
        for item in items:
            if len(done) == 2:
                raise KeyboardInterrupt
            done.append(function(item))
            yield done[-1]

    with pytest.raises(KeyboardInterrupt):
        extracted(evaluation, model, "killed", images_per_task=400, tasks=killed)
    keys = [f"stages/features/killed/{file.address}" for part in done for file in part.files.values()]
    before = [evaluation.storage.read_tagged(key)[1] for key in keys]
    again = extracted(evaluation, model, "killed", attempt=2, images_per_task=400)
    assert [evaluation.storage.read_tagged(key)[1] for key in keys] == before
    assert len(again.meta["parts"]) == 5
    assert again.digest == extracted(evaluation, model, "parts-again", images_per_task=400).digest


@contextmanager
def another_processor():
    """Within it, sums are rounded otherwise, as by another machine's processor."""

    def rounded_up(module, _, output):
        return torch.nextafter(output, torch.tensor(torch.inf)) if isinstance(module, torch.nn.LayerNorm) else output

    handle = torch.nn.modules.module.register_module_forward_hook(rounded_up)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("call", ["write", "write_if_absent"])
def test_a_task_that_was_given_up_harms_none_of_what_the_next_one_stores(evaluation, model, call):
    name, found = f"given-up-{call}", []

    def overtaken(_, method, key):
        if method == call and key.startswith(f"stages/features/{name}/features/") and not found:
            found.append(None)
            with another_processor():
                found[0] = extracted(evaluation, model, name, attempt=2)

    given_up = stage_context(interposed(evaluation.storage, overtaken)[0], f"stages/features/{name}")
    late = run(config(evaluation), {"data": evaluation.dataset, "model": model}, given_up).output
    # Whoever stored the note has made them all, for both.
    assert late.meta == found[0].meta
    features = read_features(evaluation.storage, found[0]).load("features")[0].features
    alone = read_features(evaluation.storage, extracted(evaluation, model, f"{name}-alone")).load("features")[0]
    assert not np.array_equal(features, alone.features)
    np.testing.assert_allclose(features, alone.features, rtol=0, atol=1e-3)


def test_a_file_that_was_lost_is_made_anew(evaluation, model):
    output = extracted(evaluation, model, "lost")
    lost = output.meta["parts"][0]["files"]["features"]
    evaluation.storage.delete(f"stages/features/lost/{lost['address']}")
    with another_processor():
        again = extracted(evaluation, model, "lost", attempt=2)
    assert again.meta["parts"][0]["files"]["features"]["sha256"] != lost["sha256"]
    assert config(evaluation).is_in_place(evaluation.storage, again)
    read_features(evaluation.storage, again).load("features")
    assert extracted(evaluation, model, "lost", attempt=3).meta == again.meta


def test_what_an_earlier_version_has_stored_is_used(evaluation, model):
    """Its files' names do not tell their content."""
    output = extracted(evaluation, model, "earlier")
    (note,) = (key for key in evaluation.storage.list("stages/features/earlier/features/") if key.endswith(".json"))
    document = json.loads(evaluation.storage.read(note))
    prefix = note.removeprefix("stages/features/earlier/").removesuffix(".json")
    for kind, file in document["files"].items():
        body = evaluation.storage.read(f"stages/features/earlier/{file['address']}")
        evaluation.storage.delete(f"stages/features/earlier/{file['address']}")
        file["address"] = f"{prefix}-{kind}.safetensors"
        evaluation.storage.write(f"stages/features/earlier/{file['address']}", body)
    evaluation.storage.write(note, canonical_json(document))
    again = extracted(evaluation, model, "earlier", attempt=2)
    assert again.meta["parts"] == [{name: document[name] for name in ("files", "count")}] != output.meta["parts"]
    read_features(evaluation.storage, again).load("pixels")


def test_another_model_in_the_same_folder_takes_nothing_over(evaluation, whole):
    other = evaluation.committed(random_model(1, head="mlp_tanh"))
    found = read_features(evaluation.storage, extracted(evaluation, other, "whole", attempt=2)).load("features")[0]
    assert not np.allclose(found.features, read_features(evaluation.storage, whole).load("features")[0].features)


def test_half_precision_is_evaluated_as_it_is_stored(evaluation, model, whole):
    half = extracted(evaluation, model, "half", stored_as="float16")
    one, other = (read_features(evaluation.storage, output).load("features")[0] for output in (whole, half))
    assert other.features.dtype == np.float32
    assert np.array_equal(other.features, one.features.astype(np.float16).astype(np.float32))
    assert sum(p["files"]["features"]["bytes"] for p in half.meta["parts"]) < 0.6 * sum(
        p["files"]["features"]["bytes"] for p in whole.meta["parts"]
    )
    assert evaluated(evaluation, [half]).metrics["features/all/5_shot"] == pytest.approx(
        evaluated(evaluation, [whole]).metrics["features/all/5_shot"], abs=0.02
    )


def test_features_that_are_no_numbers_are_refused(evaluation):
    broken = random_model(0)
    with torch.no_grad():
        broken.norm.bias[0] = torch.nan
    output = extracted(evaluation, evaluation.committed(broken), "nan", baselines=())
    with pytest.raises(UserError, match=r"features of 'digits' are not finite for \d+ of \d+ images: the network"):
        evaluated(evaluation, [output])


def test_values_beyond_half_precision_are_refused(evaluation):
    large = random_model(0)
    with torch.no_grad():
        large.norm.weight.fill_(1e6)
    output = extracted(evaluation, evaluation.committed(large), "large", baselines=(), stored_as="float16")
    with pytest.raises(UserError, match="float16 cannot hold"):
        evaluated(evaluation, [output])


def test_a_damaged_file_and_a_lost_one_are_noticed(evaluation, model):
    output = extracted(evaluation, model, "damaged", baselines=())
    own = config(evaluation)
    assert own.is_in_place(evaluation.storage, output)
    key = f"stages/features/damaged/{output.meta['parts'][0]['files']['features']['address']}"
    body = evaluation.storage.read(key)
    evaluation.storage.write(key, body[:-1] + bytes([body[-1] ^ 1]))
    with pytest.raises(UserError, match="is not what its manifest says"):
        evaluated(evaluation, [output])
    evaluation.storage.delete(key)
    assert not own.is_in_place(evaluation.storage, output)


def test_several_data_sets_share_one_lambda_by_rank(evaluation, model, whole):
    other = extracted(evaluation, model, "other", dataset=evaluation.ingested(seed=7, held_out_classes=3))
    fields = {"regularisation_by": "global_rank", "candidates": (1.0, 1024.0, 2.0**19), "class_sets": ("all",)}
    result = evaluated(evaluation, [whole, other], **fields)
    rows = result.tables["fewshot"]
    assert {row["data"] for row in rows} == {"f0", "f1"}
    chosen = {}
    for row in rows:
        chosen.setdefault((row["features"], row["shots"]), set()).add(row["regularisation"])
    assert all(len(values) == 1 for values in chosen.values())
    assert "f0/features/all/5_shot" in result.metrics


def test_classifiers_stand_in_one_table(evaluation, whole):
    names = ("least_squares", "neighbours", "linear_probe")
    result = evaluated(evaluation, [whole], classifiers=names, draws=2, class_sets=("held_out",))
    rows = result.tables["fewshot"]
    assert [row["classifier"] for row in rows[:3]] == list(names)
    assert len(rows) == 3 * 3 * len(SHOTS)
    assert {
        "features/held_out/5_shot",
        "features/held_out/5_shot_neighbours",
        "pixels/held_out/1_shot_linear_probe",
    } <= set(result.metrics)
    # Real digits, three classes, five images of each: all of them see something in the pixels.
    pixels = [row for row in rows if row["features"] == "pixels" and row["shots"] == 5]
    assert all(row["accuracy"] > 0.6 for row in pixels)


def test_outputs_of_another_kind_are_refused(evaluation, model):
    with pytest.raises(UserError, match="is a model, not features: refer to a features stage"):
        evaluated(evaluation, [model])
    with pytest.raises(UserError, match="is a dataset, not a model: refer to a pretrain or finetune stage"):
        extracted(evaluation, evaluation.dataset, "none")


def test_images_of_several_labels_are_refused(evaluation, model):
    manifest = {**evaluation.dataset.manifest, "meta": {**evaluation.dataset.meta, "multi_label": True}}
    with pytest.raises(UserError, match="'digits' has images of several labels: this evaluation needs one of each"):
        extracted(evaluation, model, "several", dataset=replace(evaluation.dataset, manifest=manifest))


def test_a_class_without_images_to_draw_is_named(evaluation, model):
    meta = evaluation.dataset.meta
    manifest = {**evaluation.dataset.manifest, "meta": {**meta, "classes": [*meta["classes"], "ten"]}}
    output = extracted(evaluation, model, "eleven", dataset=replace(evaluation.dataset, manifest=manifest))
    with pytest.raises(UserError, match="no images to draw shots from for the classes ten: lower test_fraction"):
        evaluated(evaluation, [output], class_sets=("all",))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "name the stages of the data set and of the model, data and from, or those of features"),
        ({"data": "ingest"}, "name the stages of the data set"),
        ({"features": "f", "data": "ingest"}, r"features=\['f'\] says data already: leave it out here"),
        ({"features": "f", "baselines": ()}, "says baselines already"),
        ({"features": ("f", "f")}, "name each stage once"),
        ({"features": "f", "candidates": (1.0, 0.0)}, "must be different numbers above 0"),
        ({"features": "f", "classifiers": ("neighbours", "neighbours")}, "name each one once"),
    ],
)
def test_contradictions_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        FewshotConfig.model_validate(fields)
