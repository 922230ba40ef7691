import pytest
import safetensors.torch
import torch

from cluster.errors import UserError
from stages.context import read_output
from stages.models.bit import BitResNet
from stages.models.build import build
from stages.models.config import model_config
from stages.models.download import WEIGHTS
from stages.models.initialize import initialize
from stages.models.resampling import resample_position_embeddings
from stages.models.store import adapt, load_model, model_bytes, read_state
from stages.models.vit import VisionTransformer
from tests.unit.stages.models.outputs import (
    commit_model,
    file_storage,
    random_images,
    random_model,
    small_config,
    stage_context,
)

HEAD = ["head.bias", "head.weight"]
HIDDEN = ["pre_logits.fc.bias", "pre_logits.fc.weight"]


@pytest.fixture
def context(tmp_path):
    return stage_context(file_storage(tmp_path), "stages/pretrain/x")


def test_equal_weights_give_equal_bytes():
    state = random_model(0).state_dict()
    expected = model_bytes(state)
    assert model_bytes(random_model(0).state_dict()) == expected
    assert model_bytes(dict(reversed(state.items()))) == expected
    assert model_bytes({name: tensor.double() for name, tensor in state.items()}) == expected
    strided = {name: torch.stack([t, t], dim=-1)[..., 0] for name, t in state.items()}
    assert model_bytes(strided) == expected
    assert model_bytes(random_model(1).state_dict()) != expected


def test_a_model_file_is_plain_safetensors_in_float32():
    state = random_model(0).to(torch.bfloat16).state_dict()
    stored = safetensors.torch.load(model_bytes(state))
    assert stored.keys() == state.keys()
    assert all(torch.equal(stored[name], state[name].float()) for name in state)


@pytest.mark.parametrize("fields", [{}, {"pool": "average", "head": "mlp_tanh", "activation": "gelu", "dropout": 0.1}])
def test_a_committed_model_comes_back_bit_for_bit(context, fields):
    model = random_model(0, **fields)
    commit_model(context, model)
    output = read_output(context.storage, context.prefix)
    found = load_model(context.storage, output)
    assert (found.config, found.resolution, found.num_classes) == (model.config, 8, 7)
    assert not found.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor)
    assert torch.equal(found(random_images(2, 8)), model(random_images(2, 8)))


def test_another_kind_of_output_is_refused(context):
    output = context.commit("dataset", [], {"format": 1})
    with pytest.raises(UserError, match=r"attempts/1 is a dataset, not a model: refer to a pretrain or finetune stage"):
        read_state(context.storage, output)


def test_a_newer_format_is_refused(context):
    output = commit_model(context, random_model(0), format=2)
    with pytest.raises(UserError, match="has format 2; this version reads up to 1: install a newer patchline"):
        load_model(context.storage, output)


@pytest.mark.parametrize("place", [0, 8, -1])
def test_a_flipped_bit_is_refused(context, place):
    output = commit_model(context, random_model(0))
    body = bytearray(context.storage.read(output.key(WEIGHTS)))
    body[place] ^= 1
    context.storage.write(output.key(WEIGHTS), bytes(body))
    with pytest.raises(UserError, match=r"model\.safetensors has sha256 .* its manifest says .*: damaged"):
        read_state(context.storage, output)


def test_a_cut_file_is_refused(context):
    output = commit_model(context, random_model(0))
    context.storage.write(output.key(WEIGHTS), context.storage.read(output.key(WEIGHTS))[:-4])
    with pytest.raises(UserError, match="damaged"):
        read_state(context.storage, output)


def target(resolution=12, num_classes=10, **fields):
    """A model as fine-tuning makes it: initialised, then about to take pretrained weights over."""
    model = VisionTransformer(small_config(**fields), resolution, num_classes)
    initialize(model, 11)
    with torch.no_grad():
        model.head.weight.fill_(0.5)  # So that it is told from a head of zeros.
    return model


@pytest.mark.parametrize("pool", ["token", "average"])
def test_a_new_resolution_takes_all_but_the_head(pool):
    source = random_model(0, head="mlp_tanh", pool=pool)
    model = target(pool=pool)
    head = {name: model.state_dict()[name].clone() for name in HEAD}
    adaptation = adapt(source.state_dict(), source.config, 8, model, "scipy_bilinear")
    backbone = sorted(set(source.state_dict()) - {*HEAD, *HIDDEN})
    assert sorted(adaptation.loaded) == backbone
    assert adaptation.resampled == ("pos_embed",)
    assert sorted(adaptation.dropped) == HEAD + HIDDEN
    assert sorted(adaptation.fresh) == HEAD
    found, pretrained = model.state_dict(), source.state_dict()
    for name in set(backbone) - {"pos_embed"}:
        assert torch.equal(found[name], pretrained[name])
    prefix = 1 if pool == "token" else 0
    expected = resample_position_embeddings(pretrained["pos_embed"], (2, 2), (3, 3), prefix_tokens=prefix)
    assert torch.equal(found["pos_embed"], expected)
    assert all(torch.equal(found[name], head[name]) for name in HEAD)


def test_a_hybrids_stem_is_taken_over_and_its_positions_are_resampled():
    stem = {"blocks": (1,)}
    source = random_model(0, patch_size=2, stem=stem)
    model = target(resolution=16, patch_size=2, stem=stem)
    adaptation = adapt(source.state_dict(), source.config, 8, model, "scipy_bilinear")
    assert adaptation.resampled == ("pos_embed",)
    assert sorted(adaptation.fresh) == HEAD
    taken = [name for name in adaptation.loaded if name.startswith("patch_embed.backbone.")]
    assert len(taken) == 3 + 4 * 3
    assert all(torch.equal(model.state_dict()[name], source.state_dict()[name]) for name in taken)


def test_a_resnet_fits_any_resolution(context):
    source = build(model_config({"blocks": (1, 1, 1, 1)}), 32, 7)
    initialize(source, 1)
    loaded = load_model(context.storage, commit_model(context, source))
    assert isinstance(loaded, BitResNet)
    model = build(source.config, 45, 10)
    initialize(model, 2)
    adaptation = adapt(loaded.state_dict(), source.config, 32, model, "scipy_bilinear")
    assert (adaptation.resampled, sorted(adaptation.fresh)) == ((), HEAD)
    images = torch.zeros(1, 3, 45, 45)
    assert torch.equal(model.eval().features(images), source.eval().features(images))


def test_the_same_resolution_resamples_nothing_and_a_hidden_layer_stays_fresh():
    source, model = random_model(0), target(resolution=8, head="mlp_tanh")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adaptation = adapt(source.state_dict(), source.config, 8, model, "bicubic")
    assert adaptation.resampled == ()
    assert sorted(adaptation.dropped) == HEAD
    assert sorted(adaptation.fresh) == HEAD + HIDDEN
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in HEAD + HIDDEN)
    assert torch.equal(after["pos_embed"], source.state_dict()["pos_embed"])
    count = len(source.state_dict()) - 2
    assert str(adaptation).startswith(f"{count} arrays loaded; resampled: none; dropped: head.weight, head.bias; fresh")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mlp_dim": 48}, r"pretrained blocks\.0\.mlp\.fc1\.weight has shape \(32, 16\); the model has \(48, 16\)"),
        ({"depth": 1}, r"pretrained blocks\.1\.norm1\.weight has shape \(16,\); the model has no such array"),
        ({"pool": "average"}, r"pretrained cls_token has shape \(1, 1, 16\); the model has no such array"),
        ({"patch_size": 6}, r"pretrained patch_embed\.proj\.weight has shape \(16, 3, 4, 4\); the model has \(16, 3"),
    ],
)
def test_an_array_that_does_not_fit_is_named_and_nothing_is_taken_over(fields, message):
    source, model = random_model(0), target(**fields)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=message):
        adapt(source.state_dict(), source.config, 8, model, "scipy_bilinear")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
