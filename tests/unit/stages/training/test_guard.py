"""Updates that cannot be used, and what follows from them."""

import itertools

import pytest
import torch

from stages.context import Rollback
from stages.training import objectives
from stages.training.config import GuardConfig
from stages.training.guard import Guard
from stages.training.loop import train
from stages.training.objectives import cross_entropy
from stages.training.report import StepReport


def report(loss: float, norm: float = 1.0, skipped: bool = False) -> StepReport:
    return StepReport(
        loss=loss, accuracy=0.5, gradient_norm=norm, signals=0, replaced=0, parameter_norm=None, skipped=skipped
    )


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        (report(float("nan")), "the loss is nan"),
        (report(float("inf")), "the loss is inf"),
        (report(1.0, float("nan")), "the gradients' norm is nan"),
        (report(1.0, float("inf"), skipped=True), None),
        (report(1.0), None),
    ],
)
def test_what_is_no_number_is_trouble(measured, expected):
    assert Guard(GuardConfig()).trouble(measured) == expected


def test_a_spike_is_held_against_the_recent_losses():
    guard = Guard(GuardConfig(spike=2.0, recent=4))
    for loss in (9.0, 1.0, 1.1, 0.9):
        # Too few losses yet.
        assert guard.trouble(report(loss)) is None
    assert guard.trouble(report(2.2)) == "the loss rose to 2.2, from a median of 1.05"
    # The spike is none of the recent losses.
    assert guard.recent == [9.0, 1.0, 1.1, 0.9]
    assert guard.trouble(report(2.0)) is None
    assert guard.recent == [1.0, 1.1, 0.9, 2.0]


def test_a_guard_goes_on_from_what_a_checkpoint_kept():
    config = GuardConfig(spike=1.5, recent=10)
    whole, first = Guard(config), Guard(config)
    losses = [1.0 + 0.1 * (number % 3) for number in range(30)]
    for loss in losses[:17]:
        first.trouble(report(loss))
    resumed = Guard(config, first.recent)
    for loss in losses[:17]:
        whole.trouble(report(loss))
    for loss in [*losses[17:], 1.7]:
        assert whole.trouble(report(loss)) == resumed.trouble(report(loss))
    assert whole.trouble(report(1.7)) is not None


def explode(monkeypatch, at: int, value: float) -> None:
    """The loss is multiplied when the engine computes its `at`-th one."""
    calls = itertools.count(1)

    def exploding(*arguments, **options):
        return cross_entropy(*arguments, **options) * (value if next(calls) == at else 1.0)

    monkeypatch.setattr(objectives, "cross_entropy", exploding)


@pytest.mark.parametrize(("value", "words"), [(float("nan"), "the loss is nan"), (100.0, "the loss rose to")])
def test_training_goes_back_leaves_the_data_out_and_a_kill_after_that_gives_the_same_bits(
    make_stage, monkeypatch, lag, value, words
):
    guards = {"spike": 10.0, "recent": 3, "skip_batches": 2}
    fields = {"updates": 12, "guards": guards, "model": {"dropout": 0.1}}
    stage = make_stage("back")
    explode(monkeypatch, 8, value)
    outcome = train(stage.job(**fields), stage.rank())
    assert outcome["reason"].startswith(words)
    assert outcome == {**outcome, "outcome": "rollback", "update": 8, "start": 7 * 32, "stop": 9 * 32}
    assert stage.commits == [3, 6]
    monkeypatch.setattr(objectives, "cross_entropy", cross_entropy)

    left_out = Rollback(update=8, start=7 * 32, stop=9 * 32, reason=words)
    stage.rollbacks = (left_out,)
    train(stage.job(**fields), stage.rank())
    assert list(stage.losses(2)) == list(range(7, 13))
    # A run that knows from its beginning what to leave out, and is never disturbed.
    whole = make_stage("whole")
    whole.rollbacks = (left_out,)
    train(whole.job(**fields), whole.rank())
    assert stage.weights(2) == whole.weights(1)
    # Stopped after the rollback, and resumed.
    killed = make_stage("killed")
    killed.rollbacks = (left_out,)
    calls = itertools.count(1)
    train(killed.job(**fields), killed.rank(lambda: next(calls) >= 10))
    train(killed.job(**fields), killed.rank())
    assert killed.weights(2) == whole.weights(1)


class _SpoiledGradient(torch.autograd.Function):
    """A loss whose value is sound, and whose gradients are no numbers."""

    @staticmethod
    def forward(context, loss):
        return loss.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * float("nan")


@pytest.mark.parametrize(
    ("zero_stage", "precision"),
    [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")],
)
def test_gradients_that_are_no_numbers_are_trouble_at_every_zero_stage(make_stage, monkeypatch, zero_stage, precision):
    stage, calls = make_stage("gradients"), itertools.count(1)

    def spoiling(*arguments, **options):
        loss = cross_entropy(*arguments, **options)
        return _SpoiledGradient.apply(loss) if next(calls) == 5 else loss

    monkeypatch.setattr(objectives, "cross_entropy", spoiling)
    outcome = train(stage.job(zero_stage=zero_stage, precision=precision), stage.rank())
    assert (outcome["outcome"], outcome["update"]) == ("rollback", 5)
    assert outcome["reason"].startswith("the gradients' norm is")
    assert stage.commits == [3]


def test_no_batch_begins_in_what_is_left_out(digits):
    from stages.data.config import DataConfig
    from stages.data.loader import TrainLoader

    storage, dataset = digits

    def batches(start: int, left_out, world_size: int = 1, rank: int = 0) -> list[list[int]]:
        config = DataConfig(streams=2, window=64, flip=False, loader_threads=1)
        with TrainLoader(
            storage, dataset, ("train",), config, resolution=16, seed=1, global_batch=20, rank=rank,
            world_size=world_size, start=start, classes=range(10), left_out=left_out,
        ) as loader:  # fmt: skip
            return [next(loader).samples.tolist() for _ in range(4)]

    def numbers(*begins: int) -> list[list[int]]:
        return [list(range(begin, begin + 20)) for begin in begins]

    assert batches(0, [(20, 60)]) == numbers(0, 60, 80, 100)
    assert batches(20, [(20, 60)]) == numbers(60, 80, 100, 120)
    assert batches(0, [(60, 80), (20, 60)]) == numbers(0, 80, 100, 120)
    assert batches(80, [(20, 60)]) == numbers(80, 100, 120, 140)
    halves = zip(batches(0, [(20, 60)], 2, 0), batches(0, [(20, 60)], 2, 1), strict=True)
    assert [[*first, *second] for first, second in halves] == numbers(0, 60, 80, 100)
