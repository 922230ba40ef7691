"""A registered model loaded and served by its address alone, where nothing of this program is installed."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.local.processes import free_ports
from stages.data.config import DataConfig
from stages.data.dataset import open_cache, open_shards
from stages.data.evaluation_loader import evaluation_batches
from stages.data.pixels import normalise
from stages.data.reader import open_reader
from stages.models.store import load_model
from tests.contract.trained import Trained, environment_kept
from tests.unit.stages.data.pictures import picture, pillow

pytestmark = pytest.mark.cluster
ABSENT = """
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("stages", "cluster", "pipeline", "ray", "deepspeed", "webdataset", "simplejpeg"):
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Absent())
"""


@pytest.fixture(scope="module")
def elsewhere(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder, and the environment of processes that know MLflow's address and have nothing of this program."""
    folder = tmp_path_factory.mktemp("elsewhere")
    uri = trained.database(folder / "mlflow")
    with environment_kept():
        trained.register(uri)
    (folder / "absent").mkdir()
    (folder / "absent" / "sitecustomize.py").write_text(ABSENT)
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "PYTHONPATH": str(folder / "absent")}
    return folder, environment


@pytest.fixture(scope="module")
def server(elsewhere: tuple[Path, dict[str, str]]) -> Iterator[str]:
    """`mlflow models serve`, by the alias."""
    folder, environment = elsewhere
    port = free_ports(1)[0]
    words = ["models", "serve", "-m", "models:/small@champion", "--env-manager", "local", "--port", str(port)]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words], env=environment, cwd=folder, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_healthy(url, process, folder / "log")
        yield url
    finally:
        end(process)


def end(process: subprocess.Popen) -> None:
    """With all that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        # It may have ended by itself.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)


def wait_until_healthy(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/ping", timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    raise AssertionError(f"the server did not start: {log.read_text()[-3000:]}")


def asked(url: str, document: dict[str, Any]) -> Any:
    body, headers = json.dumps(document).encode(), {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(f"{url}/invocations", body, headers), timeout=60) as answer:
        return json.load(answer)["predictions"]


def records(images: list[bytes]) -> list[dict[str, str]]:
    return [{"image": base64.b64encode(data).decode()} for data in images]


def stored_images(trained: Trained, count: int) -> list[bytes]:
    data, config = trained.done["ingest"].output, DataConfig()
    cache = open_cache(trained.storage, data, config)
    reader = open_reader(cache, open_shards(cache, data, ("test",)), config, range(10))
    return [reader.read_bytes(0, number)[0] for number in range(count)]


def evaluated(trained: Trained, count: int) -> np.ndarray:
    """Logits [count, 10] by evaluation's own way: its loader and settings, the stored weights."""
    config = trained.workflow.stages["finetune"].input  # type: ignore[attr-defined]
    model = load_model(trained.storage, trained.done["finetune"].output)
    batches = evaluation_batches(
        trained.storage, trained.done["ingest"].output, ("test",), resolution=24, batch=count, rank=0, world_size=1,
        classes=range(10), config=config,
    )  # fmt: skip
    with torch.inference_mode():
        return model(normalise(next(iter(batches)).images)).numpy()


@pytest.mark.parametrize("count", [1, 7])
def test_a_server_answers_with_the_logits_of_the_checkpoint(trained: Trained, server: str, count: int):
    found = asked(server, {"dataframe_records": records(stored_images(trained, count))})
    logits, wanted = np.array([row["logits"] for row in found]), evaluated(trained, count)
    # Its number of threads may be another one, and with it the order of sums.
    assert np.abs(logits - wanted).max() < 1e-5
    assert wanted.std() > 0.05
    assert [row["class"] for row in found] == [str(number) for number in wanted.argmax(axis=1)]


def test_images_of_any_size_and_kind_share_a_request(server: str):
    images = [pillow(picture(31, 87), "JPEG"), pillow(picture(200, 50), "PNG"), pillow(picture(40, 40), "PNG", "L")]
    together = asked(server, {"dataframe_records": records(images), "params": {"top_k": 2, "logits": False}})
    assert [sorted(row) for row in together] == [["class", "probability", "top_classes", "top_probabilities"]] * 3
    assert [len(row["top_classes"]) for row in together] == [2, 2, 2]
    alone = [asked(server, {"dataframe_records": records([data])})[0] for data in images]
    assert np.allclose([row["probability"] for row in together], [row["probability"] for row in alone], atol=1e-6)


def test_the_example_that_comes_with_the_model_is_one_of_the_data_set(trained: Trained, elsewhere, server: str):
    folder, _ = elsewhere
    (path,) = (folder / "mlflow").rglob("serving_input_example.json")
    document = json.loads(path.read_text())
    ((encoded,),) = document["dataframe_split"]["data"]
    assert base64.b64decode(encoded) == stored_images(trained, 1)[0]
    assert len(asked(server, document)) == 1


def test_what_is_no_image_is_the_asker_s_mistake(server: str):
    with pytest.raises(urllib.error.HTTPError) as caught:
        asked(server, {"dataframe_records": records([pillow(picture(8, 8), "PNG"), b"no image"])})
    assert caught.value.code == 400
    assert "image 1 (8 bytes) cannot be decoded" in caught.value.read().decode()


PROGRAM = """
import base64, json, sys
import mlflow, numpy, pandas

images = [base64.b64decode(text) for text in json.load(sys.stdin)]
model = mlflow.pyfunc.load_model("models:/small@champion")
table = model.predict(pandas.DataFrame({"image": images}))
pixels = model.unwrap_python_model().predict(None, numpy.zeros((2, 9, 9, 3), numpy.uint8))
print(json.dumps({"logits": table["logits"].tolist(), "pixels": pixels["class"].tolist()}))
"""


def test_python_loads_it_by_its_alias_where_nothing_of_ours_is_installed(trained: Trained, elsewhere):
    folder, environment = elsewhere
    images = [base64.b64encode(data).decode() for data in stored_images(trained, 7)]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=json.dumps(images), env=environment, cwd=folder, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert np.abs(np.array(found["logits"]) - evaluated(trained, 7)).max() < 1e-5
    assert len(found["pixels"]) == 2
    # Nothing is told of versions that differ, or of hints that are missing.
    assert "WARNING" not in done.stderr
    assert "Add type hints" not in done.stderr


def test_the_request_of_the_page_on_serving_is_answered_as_it_stands_there(server: str, tmp_path: Path):
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    (command,) = re.findall(r"^\$ (base64 .*?)\n```", page, re.DOTALL | re.MULTILINE)
    # As large as a photo: no command line has room for it.
    (tmp_path / "photo.jpg").write_bytes(pillow(picture(700, 900), quality=95))
    words = command.replace("http://127.0.0.1:8080", server)
    done = subprocess.run(["bash", "-c", words], cwd=tmp_path, capture_output=True, text=True, check=False)
    (row,) = json.loads(done.stdout)["predictions"]
    assert len(row["top_classes"]) == 3
