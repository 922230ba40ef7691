"""Which fields are parameters of runs in MLflow: what runs are compared by, and no noise."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

import pytest

from pipeline.config import load_workflow, parse_workflow
from pipeline.identity import fields_with_role, rounding_fields
from pipeline.kinds import KINDS
from pipeline.shown_params import of_attempt, of_stage
from stages.config import StageConfig
from stages.pretrain.config import PretrainConfig
from stages.training.config import GuardConfig
from tests.unit.pipeline.toys import Source

NOISE = ("retries", "priority", "preemptions", "hang_seconds", "keep_last", "input.cache_gigabytes", "input.max_bad")


def stage(name: str = "pretrain", *overrides: str) -> StageConfig:
    return load_workflow("digits", overrides).stages[name]


def attempt(config: StageConfig) -> dict[str, Any]:
    return of_attempt(config, fields_with_role(config, "placement"))


def test_a_stage_shows_its_recipe_with_defaults_too():
    shown = of_stage(stage(), 5)
    assert shown["seed"] == 5
    # Of the file, a default, and one that came later than there were stages, at its default.
    assert (shown["lr"], shown["label_smoothing"], shown["objective.kind"]) == (0.003, 0.0, "supervised")
    assert shown["input.evaluation.method"] == "resize"
    assert shown["input.flip"] is False


def test_what_only_training_looks_at_is_no_parameter_of_an_evaluation():
    evaluated, trained = of_stage(stage("fewshot"), 0), of_stage(stage(), 0)
    assert {name for name in evaluated if name.startswith("input.")} == {"input.evaluation.method"}
    assert {"input.crop_area", "input.window", "input.mixup", "input.evaluation.method"} <= trained.keys()


def test_nothing_is_shown_that_has_no_value():
    for name in ("ingest", "pretrain", "finetune", "fewshot"):
        config = stage(name)
        for shown in (of_stage(config, 0), attempt(config)):
            assert not [key for key, value in shown.items() if value in (None, "", [], {})], shown
    assert "updates" not in of_stage(stage(), 0)
    assert "epochs" not in of_stage(stage("pretrain", "pretrain.epochs=null", "pretrain.updates=7"), 0)


def test_how_a_stage_is_placed_is_no_parameter_of_it():
    placed = fields_with_role(stage(), "placement")
    assert placed
    assert not {name for name in of_stage(stage(), 0) if name.partition(".")[0] in placed.keys() - {"input", "guards"}}


def test_an_attempt_shows_what_the_bits_depend_on_and_what_is_not_as_it_is_by_itself():
    shown = attempt(stage())
    of_bits = set(rounding_fields(PretrainConfig)) - {"micro_batch"}
    assert of_bits <= shown.keys()
    assert not [name for name in NOISE if name in shown]
    # The file says how many threads decode.
    assert shown.keys() - of_bits == {"input.loader_threads"}


@pytest.mark.parametrize("name", NOISE)
def test_what_is_set_to_another_value_is_shown(name: str):
    shown = attempt(stage("pretrain", f"pretrain.{name}=0.5" if name == "input.max_bad" else f"pretrain.{name}=7"))
    assert float(shown[name]) in (7.0, 0.5)


def test_the_placement_of_an_attempt_goes_before_the_config_s():
    config = stage()
    shown = of_attempt(config, {**fields_with_role(config, "placement"), "workers": 0})
    assert shown["workers"] == 0


def test_mappings_and_models_are_opened():
    labelled = stage("pretrain", "pretrain.node_label.gpu=h100", "pretrain.fewshot.every=9")
    shown = attempt(labelled)
    assert (shown["node_label.gpu"], shown["fewshot.every"]) == ("h100", 9)


def test_somebody_s_own_stage_follows_the_same_rule():
    assert of_stage(Source(), 1) == {"seed": 1, "text": "hello"}
    assert of_attempt(Source(), {"width": 1, "retries": 3}) == {}
    assert of_attempt(Source(width=2), {"width": 2, "retries": 3}) == {"width": 2}


@pytest.mark.parametrize(
    ("overrides", "shown", "hidden"),
    [
        (["pretrain.optimizer=adamw"], {"betas", "epsilon"}, {"momentum"}),
        (["pretrain.optimizer=sgd"], {"momentum"}, {"betas", "epsilon"}),
        (["pretrain.decay=cosine"], set(), {"timescale", "shift", "decay_factor", "decay_at"}),
        (["pretrain.decay=rsqrt"], {"timescale", "shift"}, {"decay_factor"}),
        ([], {"guards.spike"}, {"guards.recent"}),
        (["pretrain.guards.spike=3"], {"guards.spike", "guards.recent"}, set()),
        (["pretrain.decay=steps", "pretrain.decay_at=[0.5]"], {"decay_factor", "decay_at"}, {"timescale", "shift"}),
    ],
)
def test_what_says_nothing_beside_other_fields_is_not_shown(overrides, shown: set[str], hidden: set[str]):
    found = of_stage(stage("pretrain", *overrides), 0).keys()
    assert shown <= found
    assert not hidden & found


def test_of_several_classifiers_each_one_s_own_fields_are_shown():
    names = {"neighbours", "temperature", "probe_regularisation", "candidates"}
    assert not names & of_stage(stage("fewshot"), 0).keys()
    both = stage(
        "fewshot", "fewshot.classifiers=[least_squares, neighbours]", "fewshot.regularisation_by=leave_one_out"
    )
    assert names & of_stage(both, 0).keys() == {"neighbours", "temperature", "candidates"}


def test_a_rate_that_is_another_stage_s_is_not_told_as_this_one_s():
    text = "name: t\nstages:\n  ingest: {source: {kind: digits}}\n  pretrain: &p\n    data: ingest\n    model: Ti/16\n"
    text += "    updates: 1\n  other:\n    <<: *p\n    kind: pretrain\n    lr_from: pretrain\n"
    stages = parse_workflow(text, "t.yaml").stages
    assert "lr" in of_stage(stages["pretrain"], 0)
    assert "lr" not in of_stage(stages["other"], 0)


def choices(annotation: Any) -> set[Any]:
    """The values that a field's type names, within a tuple too."""
    within = get_args(annotation)
    return set(within) if get_origin(annotation) is Literal else set().union(*map(choices, within))


def test_every_mark_names_a_field_and_values_that_there_are():
    """A mark with a slip of the pen would hide its field for ever."""
    marked = 0
    for config in (*KINDS.values(), GuardConfig):
        for info in config.model_fields.values():
            extra = info.json_schema_extra
            if isinstance(extra, dict) and "only_beside" in extra:
                marked += 1
                assert config.model_fields[str(extra["only_beside"])].default == 0
            for other, values in (extra.get("only_with", {}) if isinstance(extra, dict) else {}).items():
                marked += 1
                assert set(values) < choices(config.model_fields[other].annotation), (config, other)
    assert marked >= 11
