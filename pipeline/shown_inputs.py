"""What a stage's run in MLflow says of what the stage reads: data sets, models, and addresses outside the workflow.

MLflow shows as inputs of a run data sets, and models that it knows. One that a stage has made it comes to know as a
logged model without files, which names where they lie in storage; registering that output gives it its files.
"""

from __future__ import annotations

from itertools import islice

from pipeline.identity import references
from pipeline.mlflow_models import REFUSED, LoggedModel, Registry, error_code, unregistrable
from pipeline.mlflow_runs import CHARACTERS, Runs
from pipeline.reuse import Finished
from stages.config import StageConfig

INPUT = "patchline.input."
MOST_MODELS = 32
"""That a run is connected with: a choice among more of them has the others in its tags."""


class ShownInputs:
    """Shows the inputs of one workflow's stages. Calls may raise what the server raises, and may be made again."""

    def __init__(self, runs: Runs, root: str, workflow: str) -> None:
        self._runs, self._root, self._workflow = runs, root, workflow
        self._makers: dict[str, str] = {}
        """The run of the stage that has made a model, by the model's digest."""
        self._known: dict[str, LoggedModel] = {}
        self._supported = True

    def made(self, run: str, finished: Finished) -> None:
        """Remember who has made a model. Of a stage that passes another one's on, the other one has."""
        if finished.output.kind == "model":
            self._makers.setdefault(finished.output.digest, run)

    def show(self, run: str, config: StageConfig, inputs: dict[str, Finished]) -> None:
        """Tags and inputs of a stage's run; `inputs` are by the config's reference fields."""
        self._runs.log_tags(run, self._tags(config, inputs))
        for field, done in inputs.items():
            if done.output.kind == "dataset":
                self.show_dataset(run, done, field)
        stages = references(config)
        models = ((stages[field], done) for field, done in inputs.items() if done.output.kind == "model")
        for stage, done in islice(models, MOST_MODELS):
            if self._supported:
                self._show_model(run, stage, done)

    def show_dataset(self, run: str, done: Finished, context: str) -> None:
        """A data set that a run reads or makes; `context` says which."""
        self._runs.log_dataset(
            run,
            name=str(done.output.meta["name"]),
            digest=done.output.digest,
            source=f"{self._root}/{done.output.prefix}",
            counts={name: split["count"] for name, split in done.output.meta["splits"].items()},
            context=context,
        )

    def _tags(self, config: StageConfig, inputs: dict[str, Finished]) -> dict[str, str]:
        outside = {f"{INPUT}{field}": address[:CHARACTERS] for field, address in config.addresses().items()}
        within = {f"{INPUT}{field}": f"{self._root}/{done.output.prefix}" for field, done in inputs.items()}
        digests = {f"{INPUT}{field}.digest": done.output.digest for field, done in inputs.items()}
        return {**outside, **within, **digests}

    def _show_model(self, run: str, stage: str, done: Finished) -> None:
        registry = Registry(self._runs.client, self._runs.experiment)
        try:
            model = self._known.get(done.output.digest) or self._model(registry, stage, done)
            registry.show_read(model, run)
            # Each is several requests.
            self._runs.heard()
        except Exception as error:
            if (why := unregistrable(error)) is None or self._runs.deleted():
                raise
            # The tags say it too.
            if error_code(error) in REFUSED:
                print(f"{stage}: the model that it has made is shown as a tag alone: {why}", flush=True)
                return
            # Of an older server, for example.
            self._supported = False
            print(f"models that stages read are shown as tags alone: {why}", flush=True)

    def _model(self, registry: Registry, stage: str, done: Finished) -> LoggedModel:
        output, maker = done.output, self._makers.get(done.output.digest)
        name, address = f"{self._workflow}-{stage}", f"{self._root}/{output.prefix}"
        model = registry.name_model(output.digest, name=name, run=maker, address=address)
        if maker is not None:
            registry.show_made(model, maker)
        self._known[output.digest] = model
        return model
