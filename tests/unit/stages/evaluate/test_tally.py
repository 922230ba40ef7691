"""Counts of answers against a plain statement of them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import UserError
from stages.evaluate.tally import Tally

CLASSES = 8


def logits(count, seed=0):
    # Few values, so that many are equal.
    return np.random.default_rng(seed).integers(-3, 4, size=(count, CLASSES)).astype(np.float32)


def order(scores):
    """Classes, the best first; of equal ones the first."""
    return sorted(range(len(scores)), key=lambda label: (-scores[label], label))


def log_softmax(scores):
    scores = scores.astype(np.float64)
    return scores - np.log(np.exp(scores).sum())


def counted(scores, labels, bins=15, batch=7):
    tally = Tally(bins)
    for start in range(0, len(scores), batch):
        part = slice(start, start + batch)
        tally.add(torch.from_numpy(scores[part]), torch.from_numpy(labels[part]))
    return tally


@given(st.integers(1, 60), st.integers(0, 1000), st.integers(1, 20))
def test_images_of_one_label(count, seed, bins):
    scores, labels = logits(count, seed), np.random.default_rng(seed).integers(0, CLASSES, size=count)
    tally = counted(scores, labels, bins)
    orders = [order(row) for row in scores]
    assert tally.images == count
    assert tally.hits == sum(ranks[0] == label for ranks, label in zip(orders, labels, strict=True))
    assert tally.top_hits == sum(label in ranks[:5] for ranks, label in zip(orders, labels, strict=True))
    loss = -sum(log_softmax(row)[label] for row, label in zip(scores, labels, strict=True))
    assert tally.loss == pytest.approx(loss, rel=1e-12)
    pairs = [(label, ranks[0]) for ranks, label in zip(orders, labels.tolist(), strict=True)]
    assert tally.pairs == {pair: pairs.count(pair) for pair in pairs}
    confidences = [float(np.exp(log_softmax(row).max())) for row in scores]
    error = 0.0
    for number in range(bins):
        inside = [i for i, one in enumerate(confidences) if number / bins < one <= (number + 1) / bins]
        right = sum(orders[i][0] == labels[i] for i in inside)
        error += abs(sum(confidences[i] for i in inside) - right) / count
    assert tally.calibration_error == pytest.approx(error, abs=1e-12)


def test_images_of_several_labels():
    scores, labels = logits(200, 3), (np.random.default_rng(4).random((200, CLASSES)) < 0.2).astype(np.float32)
    named = [i for i in range(200) if labels[i].any()]
    assert len(named) < 200
    tally = counted(scores, labels)
    orders = {i: order(scores[i]) for i in named}
    assert (tally.images, tally.unlabelled) == (len(named), 200 - len(named))
    assert tally.hits == sum(bool(labels[i][orders[i][0]]) for i in named)
    # Of the labels it is the most likely one that has to be among the best five.
    likely = {i: next(label for label in orders[i] if labels[i][label]) for i in named}
    assert tally.top_hits == sum(likely[i] in orders[i][:5] for i in named)
    assert tally.loss == pytest.approx(-sum(log_softmax(scores[i])[likely[i]] for i in named), rel=1e-12)
    assert tally.pairs == {}


def test_tallies_of_parts_are_that_of_the_whole():
    scores, labels = logits(90, 5), np.random.default_rng(5).integers(0, CLASSES, size=90)
    whole = counted(scores, labels)
    parts = [counted(scores[start : start + 40], labels[start : start + 40], batch=40) for start in (0, 40, 80)]
    merged = Tally(15).merge(parts)
    for name in ("images", "hits", "top_hits", "pairs"):
        assert getattr(merged, name) == getattr(whole, name)
    assert np.array_equal(merged.in_bin, whole.in_bin)
    assert np.array_equal(merged.hits_in_bin, whole.hits_in_bin)
    assert merged.calibration_error == pytest.approx(whole.calibration_error, abs=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_refused(bad):
    scores = torch.from_numpy(logits(4))
    scores[2, 1] = bad
    with pytest.raises(UserError, match="the model's logits are NaN or infinite for 1 of 4 images"):
        Tally(15).add(scores, torch.zeros(4, dtype=torch.int64))
