import pytest

from pipeline.config import load_workflow
from pipeline.identity import differences, fields_with_role, fingerprint, identity, references
from pipeline.reuse import identify
from stages.config import Config, StageConfig


def print_of(*overrides: str, stage: str = "pretrain") -> str:
    return fingerprint(identify(load_workflow("digits", overrides), stage, {"data": "0" * 64}))


@pytest.mark.parametrize(
    "override",
    ["workers=4", "zero_stage=0", "micro_batch=16", "save_every=7", "log_every=1", "threads=2",
     "input.loader_threads=5", "input.cache=/elsewhere", "retries=9", "evaluate_every=3", "cpus_per_worker=2"],
)  # fmt: skip
def test_placement_is_not_identity(override):
    assert print_of(f"pretrain.{override}") == print_of()


@pytest.mark.parametrize(
    "override",
    ["lr=0.004", "epochs=2", "global_batch=64", "model.depth=5", "model.patch_size=8", "resolution=32",
     "input.flip=true", "input.window=128", "input.streams=4", "precision=bf16", "seed=3", "label_smoothing=0.1"],
)  # fmt: skip
def test_the_recipe_is_identity(override):
    assert print_of(f"pretrain.{override}") != print_of()


def test_the_workflows_seed_is_the_stages_where_they_have_none():
    assert print_of("seed=5") == print_of("pretrain.seed=5")
    assert print_of("seed=5", "pretrain.seed=0") == print_of()


def test_inputs_are_identity():
    workflow = load_workflow("digits")
    one, two = (fingerprint(identify(workflow, "pretrain", {"data": digit * 64})) for digit in "01")
    assert one != two


def test_what_was_made_before_there_were_other_networks_is_still_the_same():
    # As the code computed it when a network could be nothing but a Vision Transformer.
    assert print_of() == "78f2a4f7b2e0b9854732bf8fb0008b4e8997c2484879eef8015f5a01b201ee31"


def test_differences_name_the_field_and_both_values():
    old, new = (
        identify(load_workflow("digits", o), "pretrain", {"data": "0"}) for o in ([], ["pretrain.model.depth=6"])
    )
    assert differences(old, new) == ["model.depth: 4 → 6"]


def test_references_are_found_by_field():
    assert references(load_workflow("digits").stages["finetune"]) == {"data": "ingest", "model": "pretrain"}


class Unstable(StageConfig):
    kind = "unstable"
    version = 1
    output = "none"
    value: object


@pytest.mark.parametrize("value", [{1, 2}, object(), float("nan"), b"bytes"])
def test_values_without_a_stable_form_are_refused(value):
    with pytest.raises((TypeError, ValueError), match="no stable form"):
        identity(Unstable(value=value), {})


def test_nested_placement_is_told_apart():
    class Outer(Config):
        inner: StageConfig

    config = load_workflow("digits").stages["pretrain"]
    assert "loader_threads" in fields_with_role(config, "placement")["input"]
    assert "loader_threads" not in fields_with_role(config, "identity")["input"]
