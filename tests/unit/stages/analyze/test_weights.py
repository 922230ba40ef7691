"""Principal components of filters, similarity of position embeddings."""

import numpy as np
import pytest
import torch

from stages.analyze.tables import filter_rows
from stages.analyze.weights import about_positions, embedding_filters, position_similarity, principal
from tests.unit.stages.models.outputs import random_model


def test_components_are_those_that_kernels_are_made_of():
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(48, 2, generator=generator))[0].T
    strengths = torch.randn(500, 2, generator=generator) * torch.tensor([3.0, 1.0])
    found = principal((strengths @ basis + 5).reshape(500, 3, 4, 4), "made up")
    assert found.explained[:2].sum() == pytest.approx(1, abs=1e-6)
    assert found.explained[0] == pytest.approx(0.9, abs=0.03)
    flat = found.components.reshape(len(found.components), -1)
    assert abs(flat[0] @ basis[0].double().numpy()) == pytest.approx(1, abs=0.01)
    np.testing.assert_allclose(flat @ flat.T, np.eye(len(flat)), atol=1e-6)
    # So that the same network has the same picture on any machine.
    assert (flat[np.arange(len(flat)), np.abs(flat).argmax(axis=1)] > 0).all()


def test_there_are_28_of_them_or_as_many_as_filters_can_have():
    patches = embedding_filters(random_model(0))
    assert (patches.components.shape, patches.what) == ((15, 3, 4, 4), "patch embedding")
    assert embedding_filters(random_model(0, width=64)).components.shape == (28, 3, 4, 4)
    assert patches.explained.sum() == pytest.approx(1)


@pytest.mark.parametrize("blocks", [(), (1,)])
def test_those_of_a_hybrid_are_of_its_first_convolution(blocks):
    model = random_model(0, stem={"blocks": blocks}, patch_size=1)
    found = embedding_filters(model)
    assert (found.components.shape, found.what) == ((28, 3, 7, 7), "first convolution of the stem")


def test_equal_filters_have_no_components_that_mean_anything():
    assert principal(torch.ones(4, 3, 2, 2), "equal").explained.tolist() == [0, 0, 0]


@pytest.mark.parametrize("kind", ["learned", "learned_2d", "sincos_2d", "sincos_1d"])
@pytest.mark.parametrize("pool", ["token", "average"])
@pytest.mark.parametrize("where", ["stem", "each_layer", "each_layer_shared"])
def test_similarity_is_that_of_the_patches_embeddings(kind, pool, where):
    model = random_model(0, resolution=12, position=kind, pool=pool, position_at=where)
    found = position_similarity(model)
    owner = model.blocks[0] if where == "each_layer" else model
    rows = owner.position_embeddings()[0, model.config.prefix_tokens :]
    assert found.shape == (9, 9)
    assert found[2, 7] == pytest.approx(torch.cosine_similarity(rows[2], rows[7], dim=0).item(), abs=1e-5)
    np.testing.assert_allclose(np.diag(found), 1)
    assert about_positions(model).startswith(f"position={kind}, as added ")


@pytest.mark.parametrize("kind", ["none", "relative"])
def test_networks_without_position_embeddings_say_so(kind):
    model = random_model(0, position=kind)
    assert position_similarity(model) is None
    assert about_positions(model).startswith("left out: ")


def test_the_numbers_of_the_tiles_are_in_the_table():
    found = principal(torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(0)), "some")
    rows = filter_rows(found)
    assert len(rows) == len(found.components)
    assert rows[1]["green/1/0"] == pytest.approx(found.components[1, 1, 1, 0], rel=1e-5)
    assert len(rows[0]) == 3 + 3 * 2 * 2
