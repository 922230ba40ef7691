"""Files that are cut, damaged, forged or pickled: one clear error each, and nothing of them is run or believed."""

import io
import json
import pickle
import re
import struct
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from cluster.errors import UserError
from stages.models.formats import npz_file
from stages.models.formats.files import read_network
from stages.models.formats.known import FOLDERS, FORMATS
from tests.unit.stages.models.formats.networks import assert_same, google_arrays, random_network, save, written

ANY = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
SMALL = {"width": 8, "depth": 1, "mlp_dim": 8, "num_heads": 2, "num_classes": 3, "resolution": 8}


@pytest.fixture(scope="module", params=FORMATS)
def file(request, tmp_path_factory):
    """A small network, its file or folder in a format, and the file that has the arrays."""
    network = random_network(**SMALL)
    path = written(network, request.param, tmp_path_factory.mktemp(request.param))
    return network, path, path / "model.safetensors" if request.param in FOLDERS else path


def after(file, change):
    """The network that is read once the file's bytes were changed, or None where it is refused; the file is mended."""
    _, path, arrays = file
    before, refused = arrays.read_bytes(), None
    try:
        arrays.write_bytes(change(before))
        return read_network(path).network
    except UserError as error:
        refused = str(error)
    finally:
        arrays.write_bytes(before)
    assert arrays.name in refused
    assert "\n" not in refused
    return None


@ANY
@given(data=some.data())
def test_a_file_that_is_cut_anywhere_is_refused(file, data):
    size = file[2].stat().st_size
    place = data.draw(some.integers(0, size - 1))
    assert after(file, lambda body: body[:place]) is None


@ANY
@given(data=some.data())
def test_a_damaged_file_is_refused_or_is_another_network_of_the_same_shape(file, data):
    network, path, arrays = file
    place = data.draw(some.integers(0, arrays.stat().st_size - 1))
    bit = data.draw(some.integers(0, 7))
    found = after(file, lambda body: body[:place] + bytes([body[place] ^ 1 << bit]) + body[place + 1 :])
    if found is None:
        return
    assert {name: value.shape for name, value in found.state.items()} == {
        name: value.shape for name, value in network.state.items()
    }
    if path.suffix == ".npz":
        # Its arrays have checksums: what is left to damage is what nobody looks at, such as times.
        assert_same(found, network)


@ANY
@given(body=some.binary(max_size=300), begin=some.sampled_from([b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"\x80\x04"]))
def test_any_other_bytes_are_refused(file, body, begin):
    assert after(file, lambda _: begin + body) is None


def arrays_of(**changed):
    arrays = google_arrays(random_network(**SMALL))
    return {**{name: value for name, value in arrays.items() if changed.get(name, 0) is not None},
            **{name: value for name, value in changed.items() if value is not None}}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"cls": np.full((1, 1, 8), np.nan, np.float32)}, "cls of shape (1, 1, 8) has 8 values that are NaN or infin"),
        ({"head/bias": np.array([1, np.inf, 0], np.float32)}, "head/bias of shape (3,) has 1 values that are NaN or"),
        ({"head/kernel": np.ones((3, 8), np.float32)}, "head/kernel has shape (3, 8), expected (8, 3)"),
        ({"embedding/bias": np.ones(9, np.float32)}, "embedding/bias has shape (9,), expected (8,)"),
        ({"head/kernel": None}, "has no array head/kernel, expected one of shape (8, 3)"),
        ({"Transformer/encoder_norm/scale": None}, "has no array Transformer/encoder_norm/scale, expected one of"),
        ({"embedding/kernel": None}, "expected one array embedding/kernel, by itself or below opt/target/, param"),
        ({"params/embedding/kernel": np.ones((4, 4, 3, 8), np.float32)}, "found embedding/kernel, params/embedding"),
        ({"embedding/kernel": np.ones((4, 2, 3, 8), np.float32)}, "shape (4, 2, 3, 8), expected square patches"),
        ({"embedding/kernel": np.ones((4, 8), np.float32)}, "embedding/kernel has shape (4, 8), expected 4 axes"),
        ({"more": np.ones((2, 2), np.float32)}, "no Vision Transformer of ours has more (2, 2): leave them out with d"),
        ({"cls": np.ones((1, 1, 8), np.int64)}, "cls of shape (1, 1, 8) has type int64, expected floating-point numb"),
        ({"cls": np.ones((0, 8), np.float32)}, "cls has shape (0, 8), expected no side of 0"),
        ({"Transformer/posembed_input/pos_embedding": np.ones((1, 7, 8), np.float32)}, "expected those of a square of"),
        ({"Transformer/encoderblock_7/LayerNorm_0/bias": np.ones(8, np.float32)}, "no Vision Transformer of ours has"),
    ],
)  # fmt: skip
def test_an_archive_that_is_no_network_says_which_array(tmp_path, changed, message):
    path = save(tmp_path / "bad.npz", arrays_of(**changed))
    with pytest.raises(UserError, match=re.escape(message)) as error:
        read_network(path)
    assert str(error.value).startswith("bad.npz: ")


class Harm:
    """What pickle would run."""

    ran = False

    def __reduce__(self):
        return setattr, (Harm, "ran", True)


def test_nothing_pickled_is_run(tmp_path):
    arrays = arrays_of(cls=np.array([Harm()], dtype=object))
    np.savez(tmp_path / "bad.npz", allow_pickle=True, **arrays)
    with pytest.raises(UserError, match=r"bad\.npz: cls of shape \(1,\) is pickled, which could run anything"):
        read_network(tmp_path / "bad.npz")
    for name in ("bad.safetensors", "pytorch_model.bin"):
        (tmp_path / name).write_bytes(pickle.dumps(Harm()))
        with pytest.raises(UserError, match=re.escape(name)):
            read_network(tmp_path / name)
    assert not Harm.ran


def zipped(path, members, **fields):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in members:
            archive.writestr(name, body, **fields)
    return path


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def claiming(shape):
    """An array's header with a shape that its bytes do not have."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return buffer.getvalue() + bytes(16)


def test_an_archive_of_very_many_arrays_is_refused_and_others_are_opened_once(tmp_path, monkeypatch):
    small = npy(np.zeros(1, np.float32))
    zipped(tmp_path / "many.npz", [(f"{number}.npy", small) for number in range(npz_file.MEMBERS + 1)])
    with pytest.raises(UserError, match=r"many\.npz: has 20,001 arrays, and at most 20,000 are read"):
        npz_file.NpzFile(tmp_path / "many.npz")
    zipped(tmp_path / "few.npz", [(f"{number}.npy", small) for number in range(50)])
    opened = []
    whole = npz_file.zipfile.ZipFile
    monkeypatch.setattr(npz_file.zipfile, "ZipFile", lambda path: opened.append(path) or whole(path))
    file = npz_file.NpzFile(tmp_path / "few.npz")
    assert [float(file.read(name)) for name in file.shapes] == [0.0] * 50
    # Each time its whole directory is read.
    assert len(opened) == 1


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_forged_archive_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "bad.npz"
    with monkeypatch.context() as smaller:
        smaller.setattr(npz_file, "UNPACKED_BYTES", 2**20)
        zipped(path, [("a.npy", npy(np.zeros(2**20, np.float32)))])
        with pytest.raises(UserError, match=r"has [\d,]+ bytes and would unpack to 4,194,432: no weights pack so well"):
            read_network(path)
    zipped(path, [("a.npy", claiming((10**9, 10**9)))])
    with pytest.raises(UserError, match=r"a has 16 bytes; its shape \(1000000000, 1000000000\) of float32 takes 4,000"):
        read_network(path)
    zipped(path, [("cls.npy", npy(np.ones(3, np.float32)))] * 2)
    with pytest.raises(UserError, match=r"bad\.npz: has cls twice"):
        read_network(path)
    zipped(path, [("../../evil.txt", b"x")])
    with pytest.raises(UserError, match=r"evil\.txt is no array"):
        read_network(path)
    zipped(path, [])
    with pytest.raises(UserError, match=r"bad\.npz: has no arrays"):
        read_network(path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("pos_embed", torch.full((1, 5, 8), float("nan")), "pos_embed of shape (1, 5, 8) has 40 values that are NaN"),
        ("norm.weight", torch.ones(9), "norm.weight has shape (9,), expected (8,)"),
        ("blocks.0.attn.qkv.weight", torch.ones(24, 9), "blocks.0.attn.qkv.weight has shape (24, 9), expected (24, 8)"),
        ("ls1.gamma", torch.ones(8), "no Vision Transformer of ours has ls1.gamma (8,)"),
        ("norm.bias", torch.ones(8, dtype=torch.int32), "norm.bias of shape (8,) has type I32, expected F64, F32, F16"),
    ],
)
def test_a_file_of_safetensors_says_which_array(tmp_path, name, value, message):
    path = written(random_network(**SMALL), "timm", tmp_path)
    state = safetensors.torch.load_file(path / "model.safetensors")
    safetensors.torch.save_file({**state, name: value}, path / "model.safetensors")
    with pytest.raises(UserError, match=re.escape(message)):
        read_network(path)


def test_a_header_may_claim_nothing_that_is_not_there(tmp_path):
    path = tmp_path / "bad.safetensors"
    for header, length in (
        ({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}, None),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, None),
        ({}, 2**62),
    ):
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", length or len(text)) + text + bytes(8))
        with pytest.raises(UserError, match=r"bad\.safetensors: it is no whole file of safetensors"):
            read_network(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "config.json: cannot be read as JSON"),
        ("[1]", "config.json: expected a mapping, got list"),
        ('{"architecture": "x", "model_args": 3}', "config.json: expected mappings model_args"),
        ('{"architecture": "x", "patchline": {"model": {}}}', "config.json: format: got None, expected 1"),
        ('{"architecture": "x", "patchline": {"model": {}, "format": 9}}', "config.json has format 9; this version"),
        ('{"architecture": "x", "patchline": 1}', "config.json: expected a description of a network"),
        (
            '{"architecture": "x", "patchline": {"format": 1, "model": {"num_heads": "many"}}}',
            "num_heads: Input should",
        ),
        (
            '{"architecture": "x", "patchline": {"format": 1, "model": {"depth": 1000000000}}}',
            "said to have depth=1000",
        ),
        (
            '{"architecture": "x", "patchline": {"format": 1, "model": {"num_heads": 2}, "resolution": 1e99}}',
            "resolution:",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, text, message):
    path = written(random_network(**SMALL), "timm", tmp_path)
    (path / "config.json").write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        read_network(path)


def test_what_is_no_file_of_weights_says_what_is_expected(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "vit.onnx").touch()
    for name, message in (
        ("empty", "expected model.safetensors in this folder, with a config.json; found nothing"),
        ("vit.onnx", "expected an .npz, a .safetensors or a folder"),
        ("gone.npz", "is not there"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            read_network(tmp_path / name)
