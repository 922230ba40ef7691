import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.classifiers.draws import draw

LABELS = np.random.default_rng(0).integers(0, 6, 300)


def big_visions(labels, classes, seed, shots):
    """`fewshot_lsr.py` again: one generator for a seed, one permutation for each class in turn, its first images."""
    generator, chosen = np.random.default_rng(seed), []
    for wanted in classes:
        members = [place for place, label in enumerate(labels.tolist()) if label == wanted]
        chosen += generator.permutation(members)[:shots].tolist()
    return chosen


@given(
    labels=st.lists(st.integers(0, 5), min_size=12, max_size=80).map(lambda extra: np.array([*range(6), *extra])),
    classes=st.permutations(range(6)).flatmap(lambda order: st.integers(1, 6).map(lambda count: order[:count])),
    seed=st.integers(0, 1000),
    shots=st.integers(1, 30),
)
def test_the_choice_is_big_visions(labels, classes, seed, shots):
    assert draw(labels, classes, seed, shots).tolist() == big_visions(labels, classes, seed, shots)


@pytest.mark.parametrize("seed", range(3))
def test_fewer_shots_are_the_first_of_more(seed):
    most = draw(LABELS, range(6), seed, 25).reshape(6, 25)
    for shots in (1, 5, 10):
        assert np.array_equal(draw(LABELS, range(6), seed, shots).reshape(6, shots), most[:, :shots])


def test_every_seed_chooses_anew():
    choices = {tuple(draw(LABELS, range(6), seed, 5).tolist()) for seed in range(20)}
    assert len(choices) == 20


def test_classes_come_in_the_order_given_and_no_image_twice():
    chosen = draw(LABELS, (4, 0, 2), 0, 10)
    assert LABELS[chosen].tolist() == [4] * 10 + [0] * 10 + [2] * 10
    assert len(set(chosen.tolist())) == 30


def test_a_class_with_too_few_images_gives_all_that_it_has():
    labels = np.array([0, 1, 0, 1, 1, 0, 0])
    chosen = draw(labels, (0, 1), 0, 4)
    assert sorted(chosen[:4].tolist()) == [0, 2, 5, 6]
    assert sorted(chosen[4:].tolist()) == [1, 3, 4]
