"""MLflow's logged and registered models, each step of which looks before it makes, and may be repeated.

An importer of mlflow, beside `mlflow_runs.py` and `model_folder.py`. A version and the logged model behind it carry the
digest of the stage's output in a tag: by that they are found again, after a lost answer or by another driver.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.environment import in_force
from pipeline.lineage import Figure

DIGEST = "patchline.output_digest"
FIGURES = "mlflow.patchline.figures"
"""The tag of a logged model with all its figures, as JSON: as a version's, lists would show it as a wall of text."""
ELSEWHERE = "patchline.files_elsewhere"
"""The tag of a logged model that has no files of its own: where they lie."""
NOTE = "mlflow.note.content"
"""The tag that a page shows as the description."""
CHAMPION = "champion"
SLOWEST_BYTES_PER_SECOND = 5e6
"""That a server takes in: how long an upload may last follows from it."""
ANSWER_SECONDS = 60
UNSUPPORTED = ("ENDPOINT_NOT_FOUND", "FEATURE_DISABLED", "NOT_IMPLEMENTED", "UNSUPPORTED_OPERATION")
REFUSED = ("PERMISSION_DENIED", "UNAUTHENTICATED", "BAD_REQUEST", "INVALID_PARAMETER_VALUE", "INVALID_STATE")
EXISTS = ("RESOURCE_ALREADY_EXISTS",)


@dataclass(frozen=True, kw_only=True)
class Version:
    """A version of a registered model."""

    number: int
    tags: Mapping[str, str]
    model_id: str | None


@dataclass(frozen=True, kw_only=True)
class LoggedModel:
    """What a version stands for: the files, with params and figures. Ready once all its files are there."""

    id: str
    address: str
    ready: bool
    pending: bool
    """Whether nobody has said yet that nothing more comes."""
    elsewhere: bool
    """Whether it names files in storage alone: see `Registry.name_model`."""
    figures: str
    """What is known of its figures, as JSON."""


class NotYet(Exception):
    """MLflow is not where it will be in a moment."""


class Registry:
    """The models of one server, in our experiment. Calls may raise whatever MLflow's client does."""

    def __init__(self, client: Any, experiment: str) -> None:
        self._client, self._experiment = client, experiment

    # Logged models

    def model_of(self, digest: str) -> LoggedModel | None:
        """The logged model of an output: of several that drivers have made at once the first, ready or not."""
        found = self._client.search_logged_models([self._experiment], f"tags.`{DIGEST}` = '{digest}'")
        models = sorted(found, key=lambda model: (model.creation_timestamp, model.model_id))
        return _model(models[0]) if models else None

    def make_model(
        self, digest: str, *, name: str, run: str | None, params: Mapping[str, str], tags: Mapping[str, str]
    ):
        """The logged model of an output, made where there is none."""
        found = self.model_of(digest) or self._make(digest, name=name, run=run, params=params, tags=tags)
        if found.elsewhere:
            self._client.set_logged_model_tags(found.id, {**tags, NOTE: ""})
            known = self._client.get_logged_model(found.id).params or {}
            if missing := {key: value for key, value in params.items() if key not in known}:
                self._client.log_model_params(found.id, missing)
        return found

    def name_model(self, digest: str, *, name: str, run: str | None, address: str) -> LoggedModel:
        """The logged model of an output; where there is none, one without files, which lie at this address."""
        about = {ELSEWHERE: address, NOTE: f"Not in MLflow's files, but in storage: `{address}`"}
        found = self.model_of(digest) or self._make(digest, name=name, run=run, params={}, tags=about)
        if found.elsewhere and found.pending:
            # Nothing more comes of it, unless somebody registers it.
            self._client.finalize_logged_model(found.id, "READY")
        return found

    def _make(
        self, digest: str, *, name: str, run: str | None, params: Mapping[str, str], tags: Mapping[str, str]
    ) -> LoggedModel:
        own = {DIGEST: digest, **tags}
        made = self._client.create_logged_model(
            self._experiment, name=name, source_run_id=run, tags=own, params=dict(params), model_type="classifier"
        )
        first = self.model_of(digest) or _model(made)
        if first.id != made.model_id:
            # Another driver was there a moment before.
            self._client.delete_logged_model(made.model_id)
        return first

    def upload(self, model: LoggedModel, folder: Path, size: int) -> None:
        """Send all files of a logged model, after which it is ready."""
        with in_force({"MLFLOW_HTTP_REQUEST_TIMEOUT": str(int(upload_seconds(size)))}):
            self._client.log_model_artifacts(model.id, str(folder))
        self._client.finalize_logged_model(model.id, "READY")
        if model.elsewhere:
            # Last: until then it counts as one without files.
            self._client.delete_logged_model_tag(model.id, ELSEWHERE)

    def show_made(self, model: LoggedModel, run: str) -> None:
        """Connect a logged model with the run that made it."""
        from mlflow.entities import LoggedModelOutput

        outputs = self._client.get_run(run).outputs
        if model.id not in [output.model_id for output in outputs.model_outputs or ()]:
            self._client.log_outputs(run, [LoggedModelOutput(model.id, step=0)])

    def show_read(self, model: LoggedModel, run: str) -> None:
        """Connect a logged model with a run that reads it; once, however often it is said."""
        from mlflow.entities import LoggedModelInput

        self._client.log_inputs(run, models=[LoggedModelInput(model.id)])

    def show(self, model: LoggedModel, run: str | None, workflow_run: str | None, figures: Iterable[Figure]) -> None:
        """Connect a logged model with the run that made it, and with what was measured of it. Without runs, nothing."""
        from mlflow.entities import Metric

        if run is not None:
            self.show_made(model, run)
        if workflow_run is not None:
            # The same points as the workflow's run has: there they are not repeated.
            metrics = [
                Metric(figure.name, figure.value, figure.time_ms, 0, model.id, figure.data_name, figure.data[:36])
                for figure in figures
            ]
            self._client.log_batch(workflow_run, metrics=metrics[:1000])

    # Registered models

    def versions(self, name: str) -> list[Version]:
        """All that can be used, by rising numbers."""
        found, token = [], None
        while True:
            page = self._client.search_model_versions(f"name = '{name}'", page_token=token)
            found += [item for item in page if item.status == "READY"]
            token = page.token
            if not token:
                break
        versions = [
            Version(number=int(item.version), tags=item.tags, model_id=_model_id(item.source)) for item in found
        ]
        return sorted(versions, key=lambda version: version.number)

    def version_of(self, name: str, digest: str) -> Version | None:
        """The version of an output. Of several, which drivers made at once, the others are removed."""
        found = [version for version in self.versions(name) if version.tags.get(DIGEST) == digest]
        for other in found[1:]:
            try:
                self._client.delete_model_version(name, str(other.number))
            except Exception as error:
                if error_code(error) != "RESOURCE_DOES_NOT_EXIST":
                    raise
        return found[0] if found else None

    def make_version(
        self, name: str, digest: str, model: LoggedModel, *, run: str | None, tags: Mapping[str, str], description: str
    ) -> Version:
        """The version of an output, made where there is none."""
        found = self.version_of(name, digest)
        if found is not None:
            return found
        self._make_name(name)
        with at_hand(self._client.tracking_uri):
            self._client.create_model_version(
                name,
                f"models:/{model.id}",
                run,
                tags={**tags, DIGEST: digest},
                description=description,
                await_creation_for=0,
                model_id=model.id,
            )
        made = self.version_of(name, digest)
        if made is None:
            raise NotYet(f"the version of {name} that was just made is not there yet")
        return made

    def known_figures(self, versions: Iterable[Version]) -> dict[str, str]:
        """Of the logged models behind these versions what is known of their figures, as JSON by the models' ids."""
        wanted = {version.model_id for version in versions if version.model_id is not None}
        found: dict[str, str] = {}
        token = None
        while wanted:
            page = self._client.search_logged_models([self._experiment], max_results=100, page_token=token)
            found |= {model.model_id: model.tags.get(FIGURES, "{}") for model in page if model.model_id in wanted}
            token = page.token
            if not token or wanted <= found.keys():
                break
        return found

    def set_figures(self, model_id: str, figures: str) -> None:
        """Say of a logged model what is known of its figures."""
        self._client.set_logged_model_tags(model_id, {FIGURES: figures})

    def set_tags(self, name: str, version: Version, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            self._client.set_model_version_tag(name, str(version.number), key, value)

    def drop_tag(self, name: str, version: Version, tag: str) -> None:
        """Take a tag away, where the version has it."""
        if tag in version.tags:
            self._client.delete_model_version_tag(name, str(version.number), tag)

    def champion(self, name: str) -> int | None:
        """The version that has the alias."""
        found = self._client.get_registered_model(name).aliases.get(CHAMPION)
        return None if found is None else int(found)

    def make_champion(self, name: str, version: int) -> None:
        self._client.set_registered_model_alias(name, CHAMPION, str(version))

    def _make_name(self, name: str) -> None:
        about = "Networks that tell images apart, trained by patchline. `champion` is the best one by its figure."
        try:
            self._client.create_registered_model(name, description=about)
        except Exception as error:
            if error_code(error) not in EXISTS:
                raise


@contextmanager
def at_hand(uri: str) -> Iterator[None]:
    """Within it a database at this address is the process's own MLflow; a server needs no such thing.

    A registry in a database looks for the logged model behind a version there, whatever its client's address.
    """
    from mlflow.tracking._tracking_service.utils import _use_tracking_uri

    if uri.startswith("http"):
        yield
        return
    # What it puts into the environment it would take away afterwards, a user's own address too.
    with in_force({"MLFLOW_TRACKING_URI": uri}), _use_tracking_uri(uri):
        yield


def error_code(error: Exception) -> str:
    """MLflow's name of what went wrong, or nothing."""
    return str(getattr(error, "error_code", ""))


def from_outside(error: Exception) -> bool:
    """Whether MLflow or the network is to blame, and not this program."""
    from mlflow.exceptions import MlflowException

    # What the client says of connections is an OSError too.
    return isinstance(error, MlflowException | OSError | NotYet)


def unregistrable(error: Exception) -> str | None:
    """Why a server will never take a model, whatever is tried; None where it may next time."""
    code = error_code(error)
    if code in UNSUPPORTED or "nsupportedModelRegistry" in type(error).__name__:
        return f"this MLflow has no registry of models ({code or type(error).__name__})"
    return f"MLflow does not take it ({code}): {error}" if code in REFUSED else None


def upload_seconds(size: int) -> float:
    """How long a server may take for a model of so many bytes."""
    return ANSWER_SECONDS + size / SLOWEST_BYTES_PER_SECOND


def _model_id(source: str) -> str | None:
    """The logged model that a version is made of: lists of versions do not name it otherwise."""
    return source.removeprefix("models:/") if source.startswith("models:/m-") else None


def _model(found: Any) -> LoggedModel:
    ended, elsewhere = str(found.status) == "READY", ELSEWHERE in found.tags
    return LoggedModel(
        id=found.model_id,
        address=found.artifact_location,
        ready=ended and not elsewhere,
        pending=not ended,
        elsewhere=elsewhere,
        figures=found.tags.get(FIGURES, "{}"),
    )
