"""Optimizers and rates against plain statements of the reference's, and the recipes of the paper's kind."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from cluster.errors import UserError
from pipeline.identity import fields_with_role
from stages.data.pixels import normalise
from stages.models.config import ModelConfig
from stages.models.initialize import initialize
from stages.models.masked import MaskedVisionTransformer
from stages.models.masked_config import MaskedConfig
from stages.models.vit import VisionTransformer
from stages.training.config import TrainingConfig
from stages.training.loop import train
from stages.training.objectives import cross_entropy
from stages.training.optimizer import decayed, make_optimizer
from stages.training.schedule import Cooldown, cooled_rate, learning_rate
from tests.unit.stages.models.outputs import small_config
from tests.unit.stages.training.test_loop import plain_losses

TOTAL = 1000


def config(**fields) -> TrainingConfig:
    return TrainingConfig.model_validate({"updates": TOTAL, "lr": 8e-4, **fields})


def stated_rate(t, *, decay, lr=8e-4, warmup=0, end=0.0, timescale=10_000, shift=0, cooldown=0, at=(), factor=0.1):
    """big_vision's `create_learning_rate_schedule`, of steps from 0; and BiT's staircase."""
    progress = np.clip((t - warmup) / (TOTAL - warmup), 0, 1)
    rate = {
        "cosine": lr * 0.5 * (1 + np.cos(np.pi * progress)),
        "linear": end + (lr - end) * (1 - progress),
        "constant": lr,
        "rsqrt": np.where(
            t < warmup, lr / np.sqrt(1 + shift / timescale), lr / np.sqrt(1 + np.abs(t + shift - warmup) / timescale)
        ),
        "steps": np.concatenate(
            [np.full(length, lr * factor**number) for number, length in enumerate(np.diff([0, *at, TOTAL]))]
        ),
    }[decay]
    rate = rate * (np.minimum(1, t / warmup) if warmup else 1.0)
    return rate * (np.minimum(1, (TOTAL - t) / cooldown) if cooldown else 1.0)


@pytest.mark.parametrize(
    ("fields", "stated"),
    [
        ({"decay": "linear", "warmup_updates": 100, "end_lr": 1e-5}, {"warmup": 100, "end": 1e-5}),
        ({"decay": "cosine", "warmup_updates": 100}, {"warmup": 100}),
        ({"decay": "cosine", "cooldown_updates": 50}, {"cooldown": 50}),
        ({"decay": "constant", "warmup_updates": 100, "cooldown_updates": 200}, {"warmup": 100, "cooldown": 200}),
        ({"decay": "rsqrt"}, {}),
        ({"decay": "rsqrt", "warmup_updates": 100, "timescale": 100}, {"warmup": 100, "timescale": 100}),
        (
            {"decay": "rsqrt", "warmup_updates": 100, "timescale": 100, "shift": 50, "cooldown_updates": 200},
            {"warmup": 100, "timescale": 100, "shift": 50, "cooldown": 200},
        ),
        ({"decay": "steps", "decay_at": [500]}, {"at": (500,)}),
        (
            # BiT's: parts of the run, each at the nearest update.
            {"decay": "steps", "decay_at": ["30/90", "60/90", "80/90"], "warmup_updates": 50},
            {"warmup": 50, "at": (333, 667, 889)},
        ),
        (
            {"decay": "steps", "decay_at": [0.05, 0.2], "warmup_updates": 100, "decay_factor": 0.5},
            {"warmup": 100, "at": (50, 200), "factor": 0.5},
        ),
        ({"decay": "steps", "decay_at": [1, 999], "cooldown_updates": 200}, {"at": (1, 999), "cooldown": 200}),
    ],
    ids=str,
)
def test_rates_are_the_references_at_every_update(fields, stated):
    found = [learning_rate(config(**fields), update, TOTAL) for update in range(1, TOTAL + 1)]
    expected = stated_rate(np.arange(TOTAL), decay=fields["decay"], **stated) * np.ones(TOTAL)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=0)


def test_rates_of_a_reciprocal_square_root_by_hand():
    fields = {"decay": "rsqrt", "warmup_updates": 100, "timescale": 100, "cooldown_updates": 200}
    found = {update: learning_rate(config(**fields), update, TOTAL) for update in (1, 2, 101, 201, 401, 800, 801, 1000)}
    assert found[1] == 0
    assert found[2] == pytest.approx(8e-6)
    # The end of the warm-up; then 1 / √2 after a timescale, and half after three of them.
    assert found[101] == pytest.approx(8e-4)
    assert found[201] == pytest.approx(8e-4 / math.sqrt(2))
    assert found[401] == pytest.approx(4e-4)
    # The cooldown begins with the rate that there would be without it, and ends one step before 0.
    assert found[801] == pytest.approx(8e-4 / math.sqrt(8))
    assert found[800] > found[801]
    assert found[1000] == pytest.approx(8e-4 / math.sqrt(1 + 899 / 100) / 200)


def test_rates_of_steps_by_hand():
    given = config(decay="steps", decay_at=[200, 300, 400], lr=0.003, warmup_updates=100)
    found = [learning_rate(given, update, 500) for update in (1, 51, 101, 200, 201, 300, 301, 400, 401, 500)]
    assert found == pytest.approx([0, 1.5e-3, *[3e-3] * 2, *[3e-4] * 2, *[3e-5] * 2, *[3e-6] * 2], rel=1e-12)
    # Of a run in epochs, parts are of its own updates: 90 epochs of 1,000 images in batches of 100.
    epochs = TrainingConfig.model_validate(
        {"epochs": 90, "global_batch": 100, "decay": "steps", "decay_at": ["30/90", "2/3"], "lr": 1.0}
    )
    total = epochs.total_updates(1000)
    assert [learning_rate(epochs, update, total) for update in (300, 301, 600, 601, 900)] == pytest.approx(
        [1, 0.1, 0.1, 0.01, 0.01], rel=1e-12
    )
    branch = Cooldown(start=250, updates=100, trunk=500)
    assert cooled_rate(given, 251, branch) == pytest.approx(3e-4, rel=1e-12)


def test_steps_are_within_the_run():
    config(decay="steps", decay_at=[999])
    with pytest.raises(ValueError, match="decay_at=1000 is not below the run's 1000 updates: lower it"):
        config(decay="steps", decay_at=[10, 1000])
    in_epochs = TrainingConfig(epochs=3, global_batch=100, decay="steps", decay_at=(30,))
    with pytest.raises(UserError, match="decay_at=30 is not below the run's 30 updates"):
        in_epochs.total_updates(1000)


def test_a_cooldown_is_that_of_a_branch():
    trunk, whole = config(decay="constant", end_lr=1e-5), config(decay="constant", end_lr=1e-5, cooldown_updates=200)
    branch = Cooldown(start=800, updates=200, trunk=5000)
    for update in range(801, 1001):
        assert learning_rate(whole, update, TOTAL) == pytest.approx(cooled_rate(trunk, update, branch), rel=1e-12)


def test_a_run_has_room_for_warm_up_and_cooldown():
    config(warmup_updates=400, cooldown_updates=600)
    with pytest.raises(
        ValueError, match="cooldown_updates=601 after a warm-up of 400 is more than the run's 1000 updates"
    ):
        config(warmup_updates=400, cooldown_updates=601)
    in_epochs = TrainingConfig(epochs=3, global_batch=100, cooldown_updates=31)
    with pytest.raises(UserError, match="cooldown_updates=31 after a warm-up of 0 is more than the run's 30 updates"):
        in_epochs.total_updates(1000)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"timescale": 100}, "timescale=100 is for decay=rsqrt; decay is cosine"),
        ({"decay": "linear", "shift": 5}, "shift=5 is for decay=rsqrt; decay is linear"),
        ({"decay_at": [0.5]}, r"decay_at=\(0\.5,\) is for decay=steps; decay is cosine"),
        ({"decay": "linear", "decay_factor": 0.5}, r"decay_factor=0\.5 is for decay=steps; decay is linear"),
        ({"decay": "steps"}, r"decay=steps needs decay_at, .* for example \[30/90, 60/90, 80/90\]"),
        *(
            ({"decay": "steps", "decay_at": places}, rf"decay_at=\[{shown}\]: expected rising parts of the run below 1")
            for places, shown in (
                ([0.5, 0.2], "0.5, 0.2"),
                ([0.5, 0.5], "0.5, 0.5"),
                ([0.5, 200], "0.5, 200"),
                ([1.5], "1.5"),
                ([300, 200], "300, 200"),
            )
        ),
        ({"decay": "steps", "decay_at": ["a third"]}, "got 'a third', expected a number or a fraction such as 30/90"),
        ({"decay": "steps", "decay_at": ["1/0"]}, "got '1/0', expected a number or a fraction such as 30/90"),
        ({"decay": "steps", "decay_at": [0]}, "greater than 0"),
    ],
)
def test_contradictions_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        config(**fields)


def test_stages_without_these_are_the_stages_that_they_were():
    new = {"head_weight_decay", "timescale", "shift", "cooldown_updates"}
    steps = {"decay_at", "decay_factor"}
    assert (new | steps) & set(fields_with_role(config(), "identity")) == set()
    given = config(head_weight_decay=3.0, decay="rsqrt", timescale=100, shift=1, cooldown_updates=10)
    assert new < set(fields_with_role(given, "identity"))
    given = config(decay="steps", decay_at=[0.5], decay_factor=0.5)
    assert steps < set(fields_with_role(given, "identity"))


# Decay


def decays(model: torch.nn.Module, **fields) -> dict[float, set[str]]:
    """Names of parameters by the weight decay that they get."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[float, set[str]] = {}
    for group in make_optimizer(model, config(**fields)).param_groups:
        found.setdefault(group["weight_decay"], set()).update(names[id(parameter)] for parameter in group["params"])
    assert sum(len(group) for group in found.values()) == len(names)
    return found


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_head_can_have_a_decay_of_its_own(optimizer):
    # big_vision's ViT-g: 0.03 for kernels, a hundred times as much for the head's.
    model = VisionTransformer(small_config(head="mlp_tanh", depth=1), 8, 7)
    kernels = {
        "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.attn.proj.weight", "blocks.0.mlp.fc1.weight",
        "blocks.0.mlp.fc2.weight", "pre_logits.fc.weight",
    }  # fmt: skip
    found = decays(model, optimizer=optimizer, weight_decay=0.03, head_weight_decay=3.0)
    assert found[0.03] == kernels
    assert found[3.0] == {"head.weight"}
    assert found[0.0] == {name for name, _ in model.named_parameters()} - kernels - {"head.weight"}
    assert decays(model, optimizer=optimizer, weight_decay=0.03)[0.03] == kernels | {"head.weight"}
    assert decays(model, optimizer=optimizer, head_weight_decay=3.0)[3.0] == {"head.weight"}


def test_what_predicts_masked_patches_is_a_head_and_the_mask_is_not_decayed():
    model = MaskedVisionTransformer(small_config(depth=1), 8, MaskedConfig())
    found = decays(model, weight_decay=0.03, head_weight_decay=3.0)
    assert found[3.0] == {"prediction.weight"}
    assert {"mask_token", "prediction.bias", "cls_token"} < found[0.0]


def a_batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (6, 8, 8, 3), generator=generator, dtype=torch.uint8)
    return normalise(images), torch.arange(6) % 7


def a_model() -> VisionTransformer:
    model = VisionTransformer(small_config(), 8, 7)
    initialize(model, 3)
    return model


def gradients(model: VisionTransformer) -> dict[str, np.ndarray]:
    """Of the loss, before anything is done to them."""
    images, labels = a_batch()
    model.zero_grad()
    cross_entropy(model(images), labels, loss="softmax").backward()
    return {name: p.grad.double().numpy().copy() for name, p in model.named_parameters() if p.grad is not None}


def clipped(found: dict[str, np.ndarray], most: float) -> dict[str, np.ndarray]:
    norm = math.sqrt(sum((gradient**2).sum() for gradient in found.values()))
    assert norm > most
    return {name: gradient * most / norm for name, gradient in found.items()}


def test_adam_is_the_references_clip_then_adam_then_decay():
    lr, wd, head, clip, (b1, b2), epsilon = 0.01, 0.1, 5.0, 0.05, (0.9, 0.999), 1e-8
    given = config(lr=lr, weight_decay=wd, head_weight_decay=head, clip=clip, decay="linear", warmup_updates=2)
    model = a_model()
    optimizer = make_optimizer(model, given)
    weights = {name: p.detach().double().numpy().copy() for name, p in model.named_parameters()}
    first, second = ({name: np.zeros_like(w) for name, w in weights.items()} for _ in range(2))
    for step in range(5):
        schedule = learning_rate(given, step + 1, TOTAL) / lr
        found = clipped(gradients(model), clip)
        for name, weight in weights.items():
            first[name] = b1 * first[name] + (1 - b1) * found[name]
            second[name] = b2 * second[name] + (1 - b2) * found[name] ** 2
            mean, square = first[name] / (1 - b1 ** (step + 1)), second[name] / (1 - b2 ** (step + 1))
            # In the reference the decay is multiplied by the schedule, and not by the peak rate: it is lr times ours.
            factor = {"head.weight": lr * head}.get(name, lr * wd)
            decay = factor * weight if decayed(name, dict(model.named_parameters())[name]) else 0.0
            weights[name] = weight - schedule * (lr * mean / (np.sqrt(square) + epsilon) + decay)
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        for group in optimizer.param_groups:
            group["lr"] = schedule * lr
        optimizer.step()
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(parameter.detach().numpy(), weights[name], rtol=0, atol=2e-5, err_msg=name)


@pytest.mark.parametrize(("wd", "head"), [(0.0, None), (0.4, None), (0.4, 20.0)])
@pytest.mark.parametrize("polyak_decay", [0.0, 0.9])
def test_momentum_is_the_references_clip_then_momentum_then_decay(wd, head, polyak_decay):
    lr, clip = 0.1, 0.05
    given = config(
        optimizer="sgd", lr=lr, momentum=0.9, clip=clip, weight_decay=wd, head_weight_decay=head, decay="linear",
        warmup_updates=2, polyak_decay=polyak_decay,
    )  # fmt: skip
    model = a_model()
    optimizer = make_optimizer(model, given)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] |= {"average": parameter.detach().clone()} if polyak_decay else {}
    weights = {name: p.detach().double().numpy().copy() for name, p in model.named_parameters()}
    trace = {name: np.zeros_like(weight) for name, weight in weights.items()}
    for step in range(5):
        schedule = learning_rate(given, step + 1, TOTAL) / lr
        found = clipped(gradients(model), clip)
        for name, weight in weights.items():
            trace[name] = found[name] + 0.9 * trace[name]
            # In the reference the decay is multiplied by the schedule, and not by the peak rate: it is lr times ours.
            factor = lr * (head if head is not None and name == "head.weight" else wd)
            decay = factor * weight if decayed(name, dict(model.named_parameters())[name]) else 0.0
            weights[name] = weight - schedule * (lr * trace[name] + decay)
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        for group in optimizer.param_groups:
            group["lr"] = schedule * lr
        optimizer.step()
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(parameter.detach().numpy(), weights[name], rtol=0, atol=1e-6, err_msg=name)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, wd, wd if head is None else head}


def test_decay_that_momentum_carries_on_is_ten_times_as_much_here():
    # "Big Transfer" says 0.0001, which is added to the gradient; its authors' later code has what is 0.001 here.
    start = torch.linspace(-2, 2, 10)[:, None]
    theirs, ours = (nn.Sequential(nn.Linear(1, 10, bias=False)) for _ in range(2))
    for model in (theirs, ours):
        model[0].weight.data.copy_(start)
        model[0].weight.grad = torch.zeros_like(start)
    coupled = torch.optim.SGD(theirs.parameters(), lr=0.48, momentum=0.9, weight_decay=1e-4)
    decoupled = make_optimizer(ours, config(optimizer="sgd", lr=0.48, momentum=0.9, weight_decay=1e-3))
    for _ in range(3000):
        coupled.step()
        decoupled.step()
    found, expected = ours[0].weight.detach(), theirs[0].weight.detach()
    assert float((found / start).max()) < 0.3
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0)


@pytest.mark.parametrize(
    ("zero_stage", "precision", "optimizer"),
    [
        *((zero_stage, "fp32", "adamw") for zero_stage in range(4)),
        (1, "bf16", "adamw"), (0, "fp32", "sgd"), (3, "fp32", "sgd"), (1, "bf16", "sgd"),
    ],
)  # fmt: skip
def test_every_zero_stage_has_a_head_with_its_own_decay(make_stage, zero_stage, precision, optimizer):
    stage = make_stage("head")
    fields = {
        "updates": 30, "save_every": 1000, "weight_decay": 0.1, "head_weight_decay": 20.0, "clip": 0.1,
        "optimizer": optimizer, "lr": 0.01 if optimizer == "adamw" else 0.03,
    }  # fmt: skip
    job = stage.job(zero_stage=zero_stage, precision=precision, **fields)
    train(job, stage.rank())
    expected = plain_losses(stage, job)
    np.testing.assert_allclose(
        list(stage.losses(1).values()), expected, rtol=0, atol=1e-5 if precision == "fp32" else 0.02
    )
    other = make_stage("other")
    without = other.job(**{**fields, "head_weight_decay": None})
    # The decay of the head makes a difference that would be seen.
    assert abs(plain_losses(other, without)[-1] - expected[-1]) > 1e-3


# The start


def test_many_classes_under_sigmoids_begin_with_a_loss_of_10_99():
    shape = {"width": 16, "depth": 1, "mlp_dim": 32, "num_heads": 2, "patch_size": 8, "head": "mlp_tanh"}
    model = VisionTransformer(ModelConfig.model_validate({**shape, "head_bias": -10.0}), 16, 21_843)
    initialize(model, 0)
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = float(cross_entropy(model(images), torch.tensor([0, 1, 20_000, 21_842]), loss="sigmoid").detach())
    assert found == pytest.approx(21_843 * math.log1p(math.exp(-10)) + 10, abs=1e-3)
    assert found == pytest.approx(10.99, abs=0.005)
    # Of several labels, each one costs ten.
    labels = torch.zeros(4, 21_843)
    labels[:, [5, 700, 9000]] = 1
    several = float(cross_entropy(model(images), labels, loss="sigmoid").detach())
    assert several == pytest.approx(found + 20, abs=1e-3)
