import subprocess
import sys

import pytest
import torch

from cluster.errors import UserError
from stages.context import Output
from stages.data.manifest import dataset_meta
from stages.models.store import load_model, read_state
from stages.pretrain.config import PretrainConfig
from stages.pretrain.run import run
from tests.unit.stages.chain import SMALL

MODEL = {"width": 16, "depth": 1, "mlp_dim": 32, "num_heads": 2, "patch_size": 8}


@pytest.fixture(scope="module")
def pretrained(ingested_digits):
    """The stage's result, and what its gang was told."""
    stages, dataset = ingested_digits
    config = PretrainConfig.model_validate({**SMALL, "data": "ingest", "model": MODEL, "resolution": 16, "epochs": 0.5})
    result = run(config, {"data": dataset}, stages.context("pretrain", seed=5))
    return result, stages.jobs[-1]


def test_it_trains_on_the_train_split_alone_and_on_no_class_that_is_held_out(ingested_digits, pretrained):
    _, dataset = ingested_digits
    result, job = pretrained
    meta = dataset_meta(dataset)
    assert job.splits == ("train",)
    assert len(meta.held_out) == 3
    assert list(job.class_ids) == [label for label in range(10) if label not in meta.held_out]
    assert job.pretrained is None
    assert result.output.meta["class_ids"] == list(job.class_ids)
    assert result.output.meta["classes"] == [meta.classes[label] for label in job.class_ids]
    assert job.updates == round(0.5 * meta.splits["train"].count / 32)
    assert result.metrics["updates"] == job.updates


def test_it_is_evaluated_on_the_classes_that_it_has_seen(pretrained):
    result, job = pretrained
    assert job.evaluation == {"validation": ("validation",), "test": ("test",)}
    assert {"validation/accuracy", "test/accuracy"} <= result.metrics.keys()


def test_the_model_that_it_leaves_is_the_one_that_was_asked_for(ingested_digits, pretrained):
    stages, dataset = ingested_digits
    result, _ = pretrained
    model = load_model(stages.storage, result.output)
    assert (model.config.width, model.config.depth, model.resolution, model.num_classes) == (16, 1, 16, 7)
    assert result.output.meta["seed"] == 5
    assert result.output.meta["trained_on"] == dataset.digest


def begun(ingested_digits, pretrained, **meta):
    """A pretraining of one update, at a rate that moves nothing, from the weights of another one."""
    stages, dataset = ingested_digits
    described = {**pretrained[0].output.manifest, "meta": {**pretrained[0].output.meta, **meta}}
    config = PretrainConfig.model_validate(
        {**SMALL, "data": "ingest", "init_from": "other", "model": MODEL, "resolution": 32, "updates": 1, "lr": 1e-30}
    )
    other = Output(prefix=pretrained[0].output.prefix, manifest=described)
    return run(config, {"data": dataset, "init_from": other}, stages.context("begun"))


def test_it_begins_with_the_weights_of_another_one_head_and_all(ingested_digits, pretrained, capsys):
    stages, _ = ingested_digits
    after = read_state(stages.storage, begun(ingested_digits, pretrained).output)
    before = read_state(stages.storage, pretrained[0].output)
    assert before.keys() == after.keys()
    assert [name for name in after if not torch.equal(before[name], after[name])] == ["pos_embed"]
    assert "resampled: pos_embed; dropped: none; fresh: none" in capsys.readouterr().out


def test_weights_of_other_classes_are_refused(ingested_digits, pretrained):
    classes = pretrained[0].output.meta["classes"]
    with pytest.raises(UserError, match=r"init_from: 'other' has 8 classes, and this data set 7: a finetune stage"):
        begun(ingested_digits, pretrained, classes=[*classes, "more"])
    with pytest.raises(UserError, match=rf"but others: first → {classes[0]}: a finetune stage"):
        begun(ingested_digits, pretrained, classes=["first", *classes[1:]])


def test_a_driver_of_training_stages_has_no_need_of_torch():
    code = "import sys, stages.finetune.run, stages.pretrain.run; print('torch' in sys.modules, 'numpy' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False False"
