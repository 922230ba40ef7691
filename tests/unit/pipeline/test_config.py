import json
import subprocess
import sys

import jsonschema
import pytest
import yaml

from cluster.errors import UserError
from pipeline.config import FORMAT, json_schema, load_workflow, parse_workflow, shipped

DIGITS = """
name: mine
stages:
  ingest: {source: {kind: digits}}
  pretrain:
    data: ingest
    model: {variant: Ti, patch_size: 4}
    resolution: 16
    updates: 10
    global_batch: 32
"""

WHOLE = f"""{DIGITS}
  finetune: {{data: ingest, from: pretrain, resolution: 24, updates: 9}}
  fewshot: {{data: ingest, from: pretrain}}
"""

SHARED = f"""{DIGITS}
  features: {{data: ingest, from: pretrain}}
  fewshot: {{features: features}}
"""

LONGER = f"""{DIGITS}
  more:
    kind: pretrain
    data: ingest
    init_from: pretrain
    model: {{variant: Ti, patch_size: 4}}
    resolution: 16
    updates: 10
"""


def load(text: str, *overrides: str):
    return parse_workflow(text, "mine.yaml", overrides)


@pytest.mark.parametrize("name", shipped())
def test_shipped_workflows_load_and_survive_a_round_trip(name):
    workflow = load_workflow(name)
    assert parse_workflow(workflow.to_yaml(), "copy") == workflow


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        (DIGITS, ["pretrain.epoch=3"], "stages.pretrain.epoch: unknown field; did you mean 'epochs'?"),
        (DIGITS, ["pretrain.model.depht=3"], "did you mean 'depth'?"),
        (DIGITS, ["pretrain.model={blocks: [1, 1, 1, 1], width_facter: 2}"], "did you mean 'width_factor'?"),
        (DIGITS, ["pretrain.model.stem.blockz=[1]"], "model.stem.blockz: unknown field; did you mean 'blocks'?"),
        (DIGITS, ["pretrain.model.depth=deep"], "stages.pretrain.model.depth: got 'deep', expected a valid integer"),
        (DIGITS, ["pretrain.model=5"], "stages.pretrain.model: got 5, expected a mapping of fields"),
        (DIGITS + "\n  odd: hello", [], "stages.odd: got 'hello', expected a mapping of the stage's fields"),
        (DIGITS + "\n  odd:", [], "stages.odd: got None, expected a mapping of the stage's fields"),
        (DIGITS, ["pretrain.model=B/15x"], "stages.pretrain.model: variant: got 'B/15x', expected one of Ti, S, B"),
        (DIGITS, ["pretrain.model=R51x1"], "stages.pretrain.model: got 'R51x1', expected one of R26, R50"),
        (DIGITS, ["pretrain.model=R50x1", "pretrain.model.depth=3"], "stages.pretrain.model.depth: unknown field"),
        (
            DIGITS,
            ["pretrain.model=R50x1", "pretrain.model.blocks=[1, 0, 1, 1]"],
            "stages.pretrain.model: blocks=[1, 0, 1, 1]: expected 1 or more",
        ),
        (DIGITS, ["pretrain.model=R26+S/32"], "resolution=16 is not a multiple of the stem's stride times patch_size"),
        (DIGITS, ["pretrain.lr=-1"], "stages.pretrain.lr: got -1"),
        (DIGITS, ["pretrain.lr=fast"], "stages.pretrain.lr: got 'fast'"),
        (DIGITS, ["pretrain.epochs=3"], "give one of epochs and updates, got epochs=3.0 and updates=10"),
        (DIGITS, ["pretrain.lr=.inf"], "stages.pretrain.lr: got inf, expected a finite number"),
        (DIGITS, ["pretrain.betas=[0.9, 1.5]"], "stages.pretrain.betas.1: got 1.5, expected less than 1"),
        (DIGITS, ["pretrain.warmup_updates=10"], "warmup_updates=10 is not below the run's 10 updates"),
        (DIGITS, ["pretrain.warmup_updates=1", "pretrain.warmup_fraction=0.1"], "one of warmup_updates and warmup_fra"),
        (
            DIGITS.replace("ingest: {", "my images: {kind: ingest, "),
            [],
            "got a stage named 'my images', expected a letter, then",
        ),
        (DIGITS.replace("ingest: {", "workflow: {kind: ingest, "), [], "not 'workflow'"),
        (WHOLE, ["finetune.resolution=18"], "stages.finetune: resolution=18 is not a multiple of patch_size=4: try 16"),
        (WHOLE, ["fewshot.resolution=24"], "stages.fewshot.resolution: got 24, expected 16, that of the model from"),
        (
            WHOLE + "\n  scores: {kind: evaluate, data: ingest, from: pretrain}",
            ["pretrain.objective=masked"],
            "stages.scores.from: 'pretrain' learns from masked patches and has no classes: fine-tune it",
        ),
        (WHOLE, ["fewshot.class_sets=[seen]"], "stages.fewshot.class_sets: got seen, expected 'all' alone"),
        (SHARED, ["features.resolution=24"], "stages.features.resolution: got 24, expected 16, that of the model"),
        (SHARED, ["fewshot.class_sets=[seen]"], "stages.fewshot.class_sets: got seen, expected 'all' alone"),
        (SHARED, ["fewshot.features=ingest"], "stage 'ingest' makes a dataset, expected one that makes features"),
        (SHARED, ["fewshot.data=ingest"], "says data already: leave it out here"),
        (
            LONGER,
            ["more.model.depth=6"],
            "stages.more.model.depth: got 6, expected 12, that of the model from 'pretrain'",
        ),
        (LONGER, ["more.model=R50x1"], "stages.more.model: got R50x1, expected ViT-Ti/4, that of the model from 'pre"),
        (
            LONGER,
            ["pretrain.model=R50x1", "more.model=R50x2"],
            "stages.more.model.width_factor: got 2, expected 1, that of the",
        ),
        (LONGER, ["more.model={variant: Ti, patch_size: 1, stem: {}}"], "stages.more.model.patch_size: got 1, expec"),
        (
            LONGER,
            ["pretrain.model.patch_size=1", "more.model={variant: Ti, patch_size: 1, stem: {}}"],
            "stages.more.model.stem: got {'blocks': [],",
        ),
        (
            WHOLE,
            ["pretrain.model=R50x1", "finetune.dropout=0.1"],
            "stages.finetune.dropout=0.1: a ResNet has none: set it to 0 ('pretrain' makes one)",
        ),
        (
            f"{DIGITS}  analyze: {{data: ingest, from: pretrain}}\n",
            ["pretrain.model=R50x1"],
            "stages.analyze.from: R50x1, the network of 'pretrain', is a ResNet, without attention: take a Vision",
        ),
        (LONGER, ["more.init_from=ingest"], "stage 'ingest' makes a dataset, expected one that makes a model"),
        (DIGITS, ["pretrain.lr_scale=linear"], "lr_scale=linear needs lr_batch, the global batch that lr=0.001 is for"),
        (DIGITS, ["pretrain.workers=3"], "global_batch=32 is not a multiple of workers=3: try workers=2"),
        (DIGITS, ["pretrain.micro_batch=5"], "try micro_batch=4"),
        (DIGITS, ["pretrain.resolution=18"], "18"),
        (DIGITS, ["pretrain.model.in_channels=1"], "model.in_channels=1: images are read as RGB"),
        (DIGITS, ["pretrain.data=ingset"], "stages.pretrain.data: got 'ingset', expected one of the stages: ingest"),
        (DIGITS, ["pretrain.data=pretrain"], "stage 'pretrain' makes a model, expected one that makes a dataset"),
        (f"{DIGITS}  finetune: {{data: ingest, from: finetune, updates: 9}}", [], "circle: finetune → finetune"),
        (DIGITS, ["finetune.lr=1"], "'finetune' is no stage of this workflow; its stages: ingest, pretrain"),
        (DIGITS, ["stages=1"], "'stages' is no stage of this workflow"),
        (DIGITS, ["pretrain=3"], "-o pretrain=3: 'pretrain' is a stage: name one of its fields, such as pretrain.seed"),
        (DIGITS, ["pretrain.model={depth: 2, depth: 3}"], "line 1: 'depth' is there twice, first in line 1"),
        (
            DIGITS.replace("updates: 10", "updates: 10\n    lr: 1\n    updates: 20"),
            [],
            "mine.yaml: line 11: 'updates' is there twice, first in line 9: take one away",
        ),
        (f"{DIGITS}  ingest: {{source: {{kind: digits}}}}", [], "line 11: 'ingest' is there twice, first in line 4"),
        (DIGITS.replace("ingest: {", "1: {kind: ingest, "), [], "stages: got a stage named 1, expected a letter, then"),
        (DIGITS.replace("ingest: {", "on: {kind: ingest, "), [], "stages: got a stage named True, expected a letter"),
        (DIGITS, ["ingest.source.kind=ftp"], "stages.ingest.source.kind: got 'ftp', expected one of digits, idx, fold"),
        (DIGITS, ["ingest.source={path: x}"], "stages.ingest.source.kind: this field is required"),
        (DIGITS, ["ingest.source=5"], "stages.ingest.source: got 5, expected a mapping of fields"),
        (DIGITS, ["ingest.kind=[1]"], "stages.ingest.kind: got [1], expected one of ingest"),
        (DIGITS, ["pretrain.lr"], "expected a field and a value"),
        (DIGITS.replace("data: ingest", ""), [], "stages.pretrain.data: this field is required"),
        (DIGITS.replace("ingest:", "inject:"), [], "stages.inject.kind: got 'inject', expected one of ingest"),
        (DIGITS.replace("name: mine", "name: 'a b'"), [], "name: got 'a b'"),
        ("stages: [", [], "not readable as YAML"),
        ("just text", [], "expected a mapping with the keys name and stages"),
    ],
)
def test_mistakes_get_one_clear_message(text, overrides, expected):
    with pytest.raises(UserError) as error:
        load(text, *overrides)
    assert expected in str(error.value)


def test_fields_that_are_merged_from_an_anchor_may_be_given_again():
    anchored = DIGITS.replace("pretrain:", "pretrain: &base")
    second = "  longer:\n    <<: *base\n    kind: pretrain\n    updates: 20\n"
    third = "  longest: {<<: *base, kind: pretrain, updates: 40}\n"
    stages = load(f"{anchored}{second}{third}").stages
    assert [stages[name].updates for name in ("pretrain", "longer", "longest")] == [10, 20, 40]


def test_a_stored_workflow_has_a_format_and_a_users_own_file_need_not(tmp_path):
    stored = yaml.safe_load(load(DIGITS).to_yaml())
    assert stored["format"] == FORMAT
    newer = yaml.safe_dump({"format": FORMAT + 1, "graph": {}})
    with pytest.raises(UserError, match=rf"workflow\.yaml has format {FORMAT + 1}; .* up to {FORMAT}: install a newer"):
        parse_workflow(newer, "workflow.yaml")
    with pytest.raises(UserError, match="format: got 'new', expected 1, or no such field"):
        load(f"format: new{DIGITS}")


def test_a_reference_to_the_wrong_kind_of_output_is_refused():
    text = DIGITS + "  finetune: {data: ingest, from: ingest, resolution: 16, updates: 1}\n"
    with pytest.raises(UserError, match="stage 'ingest' makes a dataset, expected one that makes a model"):
        load(text)


def test_a_missing_file_names_the_workflows_that_ship():
    with pytest.raises(UserError, match=r"shipped workflows: .*digits"):
        load_workflow("nowhere.yaml")


def test_overrides_reach_nested_fields_and_keep_the_rest():
    workflow = load(DIGITS, "pretrain.input.flip=false", "stages.pretrain.lr=0.5", "seed=7")
    pretrain = yaml.safe_load(workflow.to_yaml())["stages"]["pretrain"]
    assert (pretrain["input"]["flip"], pretrain["lr"], workflow.seed) == (False, 0.5, 7)
    assert pretrain["updates"] == 10


@pytest.mark.parametrize(
    ("written", "overrides", "title"),
    [
        ("B/16", [], "ViT-B/16"),
        ("ViT-L/32", [], "ViT-L/32"),
        ("R50+B/16", [], "R50+ViT-B/16"),
        ("R+Ti/16", ["model.depth=3"], "R+ViT-Ti/16"),
        ("R50x1", [], "R50x1"),
        ("{variant: R101x3, head_bias: -10}", [], "R101x3"),
        ("{blocks: [1, 1, 2, 1]}", [], "R[1, 1, 2, 1]x1"),
        ("B/16", ["model=R50x2"], "R50x2"),
        ("R50x2", ["model.variant=L", "model.patch_size=16"], "ViT-L/16"),
        ("{width: 64, depth: 1, mlp_dim: 64, num_heads: 1, patch_size: 4}", ["model.patch_size=8"], "ViT-64x1/8"),
        ("{variant: S, patch_size: 2, stem: {blocks: [1, 1]}}", [], "R[1, 1]+ViT-S/16"),
    ],
)
def test_a_network_is_written_as_its_name_or_its_fields(written, overrides, title):
    text = DIGITS.replace("{variant: Ti, patch_size: 4}", written).replace("resolution: 16", "resolution: 224")
    workflow = load(text, *(f"pretrain.{override}" for override in overrides), "pretrain.model.head_bias=-10")
    model = workflow.stages["pretrain"].model
    assert (model.title, model.head_bias) == (title, -10)
    assert parse_workflow(workflow.to_yaml(), "copy") == workflow


def test_a_sweep_goes_over_networks_and_over_fields_of_a_named_one():
    text = DIGITS.replace("{variant: Ti, patch_size: 4}", "Ti/16").replace("resolution: 16", "resolution: 32")
    names = load(f"{text}    sweep: {{model: [Ti/16, R50x1]}}\n").stages
    assert [names[name].model.title for name in ("pretrain-model-Ti_16", "pretrain-model-R50x1")] == [
        "ViT-Ti/16",
        "R50x1",
    ]
    fields = load(f"{text}    sweep: {{model.head_bias: [0, -10]}}\n").stages
    assert {stage.model.head_bias for name, stage in fields.items() if name.startswith("pretrain-")} == {0, -10}


def test_the_json_schema_takes_networks_as_they_may_be_written():
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    document = yaml.safe_load(DIGITS)
    model = document["stages"]["pretrain"].pop("model")
    document["stages"] = {name: {"kind": name, **fields} for name, fields in document["stages"].items()}
    good = ["B/16", "ViT-H/14", "R50+B/16", "R50x1", model, {"variant": "R50x1", "head_bias": -10}, {"variant": "L/16"}]
    good += [{"blocks": [1, 1, 1, 1]}, {"variant": "Ti", "stem": {"blocks": [1]}, "patch_size": 1}]
    for value, valid in [(value, True) for value in good] + [(value, False) for value in ("R5", 5, {"dept": 3})]:
        document["stages"]["pretrain"]["model"] = value
        assert validator.is_valid(document) == valid, value
    assert validator.is_valid(yaml.safe_load(load(DIGITS).to_yaml()))


def test_the_json_schema_knows_every_kind_and_its_fields():
    schema = json.dumps(json_schema())
    for word in ('"ingest"', '"pretrain"', '"finetune"', '"fewshot"', '"held_out_classes"', '"zero_stage"', '"from"'):
        assert word in schema


def test_reading_a_workflow_needs_no_heavy_library():
    code = (
        "import sys; from pipeline.config import load_workflow; import pipeline.plan, pipeline.cli; "
        "load_workflow('digits'); "
        "heavy = 'torch deepspeed ray mlflow webdataset boto3 sklearn'.split(); "
        "print([name for name in heavy if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        (DIGITS.replace("resolution:", "resolutoin:"), [], "mine.yaml:8: stages.pretrain.resolutoin: unknown field"),
        (DIGITS.replace("data: ingest", "data: ingset"), [], "mine.yaml:6: stages.pretrain.data: got 'ingset'"),
        (DIGITS.replace("size: 4", "size: -4"), [], "mine.yaml:7: stages.pretrain.model.patch_size: got -4"),
        (
            f"{DIGITS}  finetune: {{data: ingest, from: finetune, updates: 9}}",
            [],
            "mine.yaml:11: stages.finetune: stages refer to each other in a circle",
        ),
        (DIGITS, ["pretrain.lr=-1"], "mine.yaml: stages.pretrain.lr: got -1"),
    ],
)
def test_a_mistake_in_the_file_is_told_with_its_line(text, overrides, expected):
    with pytest.raises(UserError) as error:
        load(text, *overrides)
    assert str(error.value).startswith(expected)


def test_a_reference_may_be_spelled_out():
    spelled = WHOLE.replace("from: pretrain", "from: '${pretrain.checkpoint}'")
    assert load(spelled.replace("data: ingest,", "data: '${ingest}',")) == load(WHOLE)
    with pytest.raises(UserError, match=r"stages.finetune.from: got '\$\{pretrain.loss\}', expected 'pretrain', or"):
        load(WHOLE.replace("from: pretrain, res", "from: '${pretrain.loss}', res"))
