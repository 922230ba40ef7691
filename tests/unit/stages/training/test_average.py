"""Polyak's average of the weights: kept by ZeRO like the optimizer's tensors, saved, resumed, evaluated, exported."""

import itertools

import numpy as np
import pytest
import safetensors.torch
import torch

from stages.training.config import TrainingConfig
from stages.training.loop import train
from stages.training.optimizer import make_optimizer, state_names
from tests.unit.stages.training.files import checkpoint_files

DECAY = 0.9


def exported(stage, attempt: int, name: str) -> dict[str, torch.Tensor]:
    return safetensors.torch.load(stage.storage.read(f"{stage.folder}/attempts/{attempt}/{name}"))


def test_the_average_follows_the_weights_by_its_decay():
    layer = torch.nn.Linear(3, 2)
    config = TrainingConfig(updates=1, optimizer="sgd", momentum=0.0, polyak_decay=DECAY)
    optimizer = make_optimizer(layer, config)
    expected = layer.weight.detach().clone()
    for parameter in layer.parameters():
        optimizer.state[parameter]["average"] = parameter.detach().clone()
    for _ in range(5):
        layer.weight.grad, layer.bias.grad = torch.ones(2, 3), torch.ones(2)
        optimizer.step()
        expected = DECAY * expected + (1 - DECAY) * layer.weight.detach()
    torch.testing.assert_close(optimizer.state[layer.weight]["average"], expected)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_every_zero_stage_averages_alike_and_leaves_the_weights_alone(make_stage, zero_stage, optimizer):
    plain, averaged = make_stage("plain"), make_stage("averaged")
    train(plain.job(zero_stage=zero_stage, optimizer=optimizer), plain.rank())
    fields = {"zero_stage": zero_stage, "optimizer": optimizer, "polyak_decay": DECAY, "save_every": 1, "keep_last": 9}
    outcome = train(averaged.job(**fields), averaged.rank())
    weights = exported(plain, 1, "model.safetensors")
    raw, average = exported(averaged, 1, "raw.safetensors"), exported(averaged, 1, "model.safetensors")
    assert all(torch.equal(raw[name], weights[name]) for name in weights)
    expected = averages_of_saved_weights(averaged)
    for name in expected:
        torch.testing.assert_close(average[name], expected[name], rtol=0, atol=1e-6)
    assert set(outcome["metrics"]) == {
        "validation/loss", "validation/accuracy", "raw/validation/loss", "raw/validation/accuracy",
    }  # fmt: skip
    # What is evaluated in between and at the end is told apart.
    assert outcome["metrics"]["validation/loss"] != outcome["metrics"]["raw/validation/loss"]


def averages_of_saved_weights(stage) -> dict[str, torch.Tensor]:
    """The average, computed from the initial weights and from those in the checkpoint of every update."""
    from stages.models.initialize import initialize
    from stages.models.vit import VisionTransformer

    job = stage.job()
    model = VisionTransformer(job.model, job.resolution, len(job.class_ids))
    initialize(model, job.seed)
    average = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for update in sorted(stage.kept):
        with checkpoint_files(stage.storage, stage.kept[update]) as files:
            for name, _, value in files.tensors(keys=frozenset({"weight"})):
                average[name] = DECAY * average[name] + (1 - DECAY) * value
    return average


@pytest.mark.parametrize(
    "fields", [{"zero_stage": 0}, {"zero_stage": 1, "precision": "bf16"}, {"zero_stage": 3}], ids=str
)
def test_a_resumed_average_has_the_same_bits(make_stage, fields):
    whole, stage = make_stage("whole"), make_stage("stopped")
    train(whole.job(polyak_decay=DECAY, **fields), whole.rank())
    calls = itertools.count(1)
    train(stage.job(polyak_decay=DECAY, **fields), stage.rank(lambda: next(calls) >= 5))
    train(stage.job(polyak_decay=DECAY, **fields), stage.rank())
    for name in ("model.safetensors", "raw.safetensors"):
        files = [s.storage.read(f"{s.folder}/attempts/{s.attempt}/{name}") for s in (whole, stage)]
        assert files[0] == files[1]


def test_an_average_begins_with_the_weights_where_the_checkpoint_has_none(make_stage):
    stage = make_stage("begins")
    calls = itertools.count(1)
    train(stage.job(), stage.rank(lambda: next(calls) >= 4))
    train(stage.job(polyak_decay=1 - 1e-9, keep_last=9), stage.rank())
    with checkpoint_files(stage.storage, stage.kept[4]) as files:
        weights = {name: value for name, _, value in files.tensors(keys=frozenset({"weight"}))}
    average = exported(stage, 2, "model.safetensors")
    for name in weights:
        torch.testing.assert_close(average[name], weights[name], rtol=0, atol=1e-7)


def test_bf16_keeps_the_exact_weights_it_was_given(make_stage):
    """DeepSpeed would make its fp32 masters of weights that are rounded to bf16 already."""
    stage = make_stage("masters")
    train(stage.job(updates=1, precision="bf16", zero_stage=1, lr=1e-12, polyak_decay=DECAY), stage.rank())
    from stages.models.initialize import initialize
    from stages.models.vit import VisionTransformer

    job = stage.job()
    model = VisionTransformer(job.model, job.resolution, len(job.class_ids))
    initialize(model, job.seed)
    for file in ("model.safetensors", "raw.safetensors"):
        found = exported(stage, 1, file)
        for name, parameter in model.named_parameters():
            np.testing.assert_allclose(found[name].numpy(), parameter.detach().numpy(), rtol=0, atol=1e-9)


def test_the_optimizers_tensors():
    assert state_names(TrainingConfig(updates=1)) == ("exp_avg", "exp_avg_sq")
    assert state_names(TrainingConfig(updates=1, optimizer="sgd", polyak_decay=0.5)) == ("momentum_buffer", "average")
