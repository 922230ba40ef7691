"""A served network answers what evaluation computes, for any number of images of any size and form."""

from __future__ import annotations

import base64
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from cluster.errors import UserError
from stages.data.config import EvaluationResize
from stages.data.decode import UnreadableImage, decode_rgb
from stages.data.evaluation import evaluation_image
from stages.data.pixels import normalise
from stages.serving.carried import NEEDED, PACKAGES, carry, modules
from stages.serving.predictor import BATCH, Predictor
from tests.unit.stages.data.pictures import picture, pillow
from tests.unit.stages.models.formats.networks import random_network

CLASSES = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu"]
NETWORKS = {
    "vit": {},
    "average": {"pool": "average", "position": "learned_2d"},
    "hybrid": {"stem": {"blocks": [1, 1]}, "patch_size": 1, "resolution": 16},
    "bit": {"blocks": [1, 1, 1, 1], "width_factor": 1, "resolution": 32},
}
RESIZES = [
    EvaluationResize(),
    EvaluationResize(method="resize_then_crop", size=40),
    EvaluationResize(method="resize_small_then_crop", size=36),
]


def folder_of(network, folder: Path, evaluation: EvaluationResize = RESIZES[0], loss: str = "softmax") -> Path:
    about = {
        "format": 1,
        "model": network.config.model_dump(mode="json"),
        "resolution": network.resolution,
        "classes": CLASSES,
        "evaluation": evaluation.model_dump(),
        "loss": loss,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(about))
    safetensors.torch.save_file(network.state, folder / "model.safetensors")
    return folder


def photos(count: int) -> list[bytes]:
    """Encoded images of different sizes, JPEGs and PNGs, colour and grey."""
    pictures = [picture(20 + 7 * i, 60 - 5 * (i % 5), seed=i) for i in range(count)]
    forms = [("JPEG", "RGB"), ("PNG", "RGB"), ("PNG", "L")]
    return [pillow(image, *forms[i % 3]) for i, image in enumerate(pictures)]


def expected(network, images: list[bytes], evaluation: EvaluationResize) -> torch.Tensor:
    """By the functions that evaluation uses, put together anew, one batch."""
    from stages.models.build import build

    model = build(network.config, network.resolution, network.num_classes)
    model.load_state_dict(network.state)
    pixels = [evaluation_image(np.asarray(decode_rgb(data)), evaluation, network.resolution) for data in images]
    with torch.inference_mode():
        return model.eval()(normalise(torch.from_numpy(np.stack(pixels))))


@pytest.fixture
def predictor(tmp_path) -> Predictor:
    return Predictor.load(folder_of(random_network(), tmp_path))


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("count", [1, 7])
def test_logits_are_those_of_the_network_for_each_family(tmp_path, kind, count):
    network = random_network(**{"resolution": 12, **NETWORKS[kind]})
    found = Predictor.load(folder_of(network, tmp_path)).logits(photos(count))
    assert torch.equal(found, expected(network, photos(count), RESIZES[0]))


@pytest.mark.parametrize("evaluation", RESIZES, ids=lambda spec: spec.method)
def test_images_are_prepared_as_the_evaluation_says(tmp_path, evaluation):
    network = random_network(resolution=32)
    found = Predictor.load(folder_of(network, tmp_path, evaluation)).logits(photos(4))
    assert torch.equal(found, expected(network, photos(4), evaluation))
    others = [expected(network, photos(4), other) for other in RESIZES if other != evaluation]
    assert not any(torch.allclose(found, other) for other in others)


def test_bytes_their_base64_and_their_pixels_mean_the_same(predictor):
    images = [pillow(picture(24, 30, seed=i), "PNG") for i in range(3)]
    texts = [base64.b64encode(data).decode() for data in images]
    pixels = np.stack([np.asarray(decode_rgb(data)) for data in images])
    wanted = predictor.logits(images)
    assert torch.equal(predictor.logits(texts), wanted)
    assert torch.equal(predictor.logits(pixels), wanted)
    assert torch.equal(predictor.logits(list(pixels)), wanted)


def test_many_images_keep_their_order(predictor):
    images = [*photos(5), *[photos(6)[5]] * (BATCH + 3), *photos(2)]
    found = predictor.logits(images)
    assert len(found) == len(images)
    alone = torch.cat([predictor.logits([data]) for data in photos(6)])
    assert torch.allclose(found[:5], alone[:5], atol=1e-5)
    assert torch.allclose(found[-2:], alone[:2], atol=1e-5)
    assert torch.allclose(found[5:-2], alone[5:].expand(BATCH + 3, -1), atol=1e-5)


def test_no_images_give_no_answers(predictor):
    assert predictor.predict([])["class"] == []


def test_answers_name_the_likeliest_classes(predictor):
    answer = predictor.predict(photos(4), top_k=3)
    logits = np.array(answer["logits"])
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    order = np.argsort(-logits, axis=1)[:, :3]
    assert answer["class"] == [CLASSES[i] for i in logits.argmax(axis=1)]
    assert answer["top_classes"] == [[CLASSES[i] for i in row] for row in order]
    assert np.allclose(answer["top_probabilities"], np.take_along_axis(softmax, order, axis=1), atol=1e-6)
    assert np.allclose(answer["probability"], softmax.max(axis=1), atol=1e-6)
    assert "logits" not in predictor.predict(photos(1), logits=False)
    assert [len(row) for row in predictor.predict(photos(2), top_k=100)["top_classes"]] == [7, 7]


def test_a_network_of_sigmoids_has_their_probabilities(tmp_path):
    predictor = Predictor.load(folder_of(random_network(), tmp_path, loss="sigmoid"))
    answer = predictor.predict(photos(3))
    assert np.allclose(answer["probability"], 1 / (1 + np.exp(-np.array(answer["logits"]).max(axis=1))), atol=1e-6)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([b"no image"], "image 0 (8 bytes) cannot be decoded"),
        (["no base64!"], "image 0 is a text that is no base64"),
        ([3], "image 0 is of int, expected the bytes of an encoded image"),
        (np.zeros((2, 8, 8, 3), np.float32), "got pixels float32 [2, 8, 8, 3], expected uint8"),
        (np.zeros((2, 3, 8, 8), np.uint8), "got pixels uint8 [2, 3, 8, 8]"),
        (np.zeros((2, 0, 8, 3), np.uint8), "got pixels uint8 [2, 0, 8, 3]"),
    ],
)
def test_what_is_no_image_is_refused(predictor, images, message):
    with pytest.raises(UserError) as caught:
        predictor.predict(images)
    assert message in str(caught.value)


def test_an_image_that_is_small_as_a_file_alone_is_refused_before_it_is_decoded(predictor):
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    ]
    image = b"\x89PNG\r\n\x1a\n" + b"".join(parts)
    with pytest.raises(UserError, match=r"image 1 has 50,000 × 50,000 pixels, expected 89,478,485 at most"):
        predictor.predict([photos(1)[0], image])


def test_a_damaged_image_is_named_by_its_place(predictor):
    with pytest.raises(UnreadableImage, match="image 66 "):
        predictor.logits([*[photos(1)[0]] * 66, b"damaged"])


def test_no_answers_are_asked_for(predictor):
    with pytest.raises(UserError, match="top_k=0"):
        predictor.predict(photos(1), top_k=0)


PROGRAM = """
import importlib.abc, json, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ImportError(f"{{name}} is not installed here")

sys.meta_path.insert(0, Absent())
sys.path.insert(0, {code!r})
from {package}.stages.serving.predictor import Predictor
predictor = Predictor.load({folder!r})
images = [open(path, "rb").read() for path in sys.argv[1:]]
print(json.dumps(predictor.predict(images)))
"""


def test_what_is_carried_along_needs_nothing_else_of_ours(tmp_path):
    """In a process that cannot import this program, nor what only it needs."""
    network, images = random_network(), photos(3)
    package = carry(tmp_path / "code")
    folder = folder_of(network, tmp_path / "network")
    paths = [tmp_path / f"{i}" for i in range(len(images))]
    for path, data in zip(paths, images, strict=True):
        path.write_bytes(data)
    absent = {*PACKAGES, "pipeline", "mlflow", "ray", "boto3", "deepspeed", "simplejpeg", "webdataset", "scipy"}
    program = PROGRAM.format(absent=sorted(absent), code=str(tmp_path / "code"), package=package, folder=str(folder))
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, paths)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    found = torch.tensor(json.loads(done.stdout)["logits"])
    assert torch.equal(found, expected(network, images, RESIZES[0]))


def test_the_carried_package_is_called_by_what_is_in_it(tmp_path):
    first, again = carry(tmp_path / "first"), carry(tmp_path / "again")
    assert first == again
    sources = list((tmp_path / "first" / first).rglob("*.py"))
    text = "\n".join(path.read_text() for path in sources)
    assert f"from {first}.stages.models.build import" in text
    assert not [line for line in text.splitlines() if line.strip().startswith(("from stages", "from cluster"))]
    # What reads storage or trains is no part of it.
    assert not [name for name in modules() if "storage" in name or "training" in name or name.endswith("context")]


def test_all_that_the_carried_modules_import_is_required():
    """By the names under which they are imported."""
    import ast

    from stages.serving.carried import _path

    imported = set()
    for module in modules():
        for node in ast.walk(ast.parse(_path(module).read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported |= {name.partition(".")[0] for name in names}
    foreign = imported - set(sys.stdlib_module_names) - {*PACKAGES, "__future__", ""}
    assert {"pillow" if name == "PIL" else name for name in foreign} - {"pydantic_core"} == set(NEEDED)
