"""A registered model's files, as MLflow loads and serves them: a script, the network's code, weights, nothing pickled.

An importer of mlflow, beside `mlflow_runs.py` and `mlflow_models.py`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cluster.environment import in_force
from cluster.storage import Storage
from stages.context import Output
from stages.models.download import download_weights
from stages.serving.carried import NEEDED, carry
from stages.temporary import temporary_folder

FORMAT = 1
"""Of config.json; see `stages.serving.predictor`, which is not imported here, since it brings torch."""
NETWORK, FIGURES = "network", "figures"
QUIET = ("mlflow.pyfunc", "mlflow.models", "mlflow.utils", "mlflow.types")
SCRIPT = '''"""A network that tells images apart, trained by patchline. The package beside it has all that it needs."""

import pandas
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class Classifier(PythonModel):
    """`model_input` is a table whose column `image` has encoded images (JPEG, PNG, …), or a list of such, or pixels as
    a uint8 array [N, H, W, 3]."""

    def load_context(self, context):
        from {package}.stages.serving.predictor import Predictor

        self.predictor = Predictor.load(context.artifacts["{network}"])

    def predict(self, context, model_input: pandas.DataFrame, params=None):
        images = model_input["image"] if isinstance(model_input, pandas.DataFrame | dict) else model_input
        try:
            return pandas.DataFrame(self.predictor.predict(images, **(params or {{}})))
        except ValueError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error


set_model(Classifier())
'''


@dataclass(frozen=True, kw_only=True)
class Served:
    """What a registered model is made of."""

    output: Output
    evaluation: dict[str, Any]
    """How evaluation brings images to the network's resolution: fields of `EvaluationResize`."""
    loss: str
    """`softmax` or `sigmoid`: what makes probabilities of logits."""
    example: bytes | None
    """An encoded image of the data set's."""
    pictures: dict[str, bytes]
    """Figures that come with the model, by file name."""

    @property
    def classes(self) -> list[str]:
        """Names of the network's outputs; their numbers where there are none."""
        names = self.output.meta.get("classes") or range(self.output.meta["num_classes"])
        return [str(name) for name in names]

    def config(self) -> dict[str, Any]:
        """What stands beside the weights."""
        described = {name: self.output.meta[name] for name in ("model", "resolution")}
        own = {"classes": self.classes, "evaluation": self.evaluation, "loss": self.loss}
        return {"format": FORMAT, **described, **own}


def write_folder(
    served: Served, storage: Storage, folder: Path, *, model_id: str, address: str, run: str | None
) -> int:
    """Write the folder of the model with this id, whose artifacts will be at `address`; returns its size in bytes.

    The weights come last, straight from storage to where they stay. Raises UserError where they are not what their
    manifest promises, NotFound where they are gone.
    """
    import mlflow.pyfunc
    from mlflow.models import Model

    model = Model(artifact_path=address, run_id=run, model_id=model_id)
    with temporary_folder() as parts, _quiet():
        package = carry(parts / "code")
        (parts / "classifier.py").write_text(SCRIPT.format(package=package, network=NETWORK), encoding="utf-8")
        (parts / NETWORK).mkdir()
        config = json.dumps(served.config(), ensure_ascii=False, indent=1)
        (parts / NETWORK / "config.json").write_text(config, encoding="utf-8")
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(parts / "classifier.py"),
            code_paths=[str(parts / "code" / package)],
            artifacts={NETWORK: str(parts / NETWORK)},
            signature=signature(),
            input_example=_example(served.example),
            pip_requirements=requirements(),
            mlflow_model=model,
        )
    for name, picture in served.pictures.items():
        (folder / FIGURES).mkdir(exist_ok=True)
        (folder / FIGURES / name).write_bytes(picture)
    download_weights(storage, served.output, folder / "artifacts" / NETWORK)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    model.model_size_bytes = size
    model.save(str(folder / "MLmodel"))
    return size


def signature() -> Any:
    """A table with the column `image` in, answers out.

    One signature has columns or a tensor, not both. Columns can be sent as JSON in any number, images of any size among
    them; pixels can be sent as PNG without loss, or handed to the model's own `predict` in Python.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
    from mlflow.types.schema import Array

    text, number = DataType.string, DataType.double
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(text, "class"),
        ColSpec(number, "probability"),
        ColSpec(Array(text), "top_classes"),
        ColSpec(Array(number), "top_probabilities"),
        ColSpec(Array(number), "logits", required=False),
    ]
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image")]),
        outputs=Schema(outputs),
        params=ParamSchema([ParamSpec("top_k", DataType.long, 5), ParamSpec("logits", DataType.boolean, True)]),
    )


def requirements() -> list[str]:
    """What an environment that serves needs, in the versions of this one."""
    # A build such as 2.13.0+cpu is no version of the package index.
    return [f"{package}=={version(package).partition('+')[0]}" for package in ("mlflow", *NEEDED)]


def _example(image: bytes | None) -> Any:
    import pandas

    return None if image is None else pandas.DataFrame({"image": [image]})


@contextmanager
def _quiet() -> Iterator[None]:
    """MLflow tells each step of saving a model, and looks for a project of uv's in the working directory."""
    loggers = [logging.getLogger(name) for name in QUIET]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with in_force({"MLFLOW_UV_AUTO_DETECT": "false", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
