"""A model of a workflow that is done becomes a version of a registered model in MLflow.

Everything that is made is looked for first, so that it may be killed anywhere and repeated by whoever comes next: the
logged model with its files, then the version, then the alias `champion`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import UserError
from cluster.storage import Storage
from pipeline import model_page
from pipeline.champion import Candidate, Decision, decide
from pipeline.config import Workflow
from pipeline.lineage import evaluations, figures
from pipeline.mlflow_models import CHAMPION, FIGURES, LoggedModel, NotYet, Registry, Version, upload_seconds
from pipeline.model_folder import Served, write_folder
from pipeline.pictures import small_picture
from pipeline.provenance import read_origin
from pipeline.register_config import ChampionConfig, RegisterConfig
from pipeline.reuse import Finished
from pipeline.serving_settings import preprocessing, training_loss

ROUNDS = 20
"""How often the alias is set again because others set it meanwhile."""


FindRun = Callable[[str], str | None]
"""The run of `workflow`, or of a stage by its name, where the server has one."""


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A version, and who is champion now."""

    name: str
    version: int
    new: bool
    decision: Decision | None
    model_id: str | None

    @property
    def address(self) -> str:
        """By which MLflow loads and serves it."""
        return f"models:/{self.name}/{self.version}"

    def __str__(self) -> str:
        what = "registered as" if self.new else "registered before as"
        about = f"; {CHAMPION} {self.decision.reason}" if self.decision is not None else ""
        return f"{what} {self.address}{about}"


class Registration:
    """One model on its way. It keeps its files while the server takes nothing; they go with it."""

    def __init__(
        self,
        storage: Storage,
        workflow_id: str,
        workflow: Workflow,
        wanted: RegisterConfig,
        done: Mapping[str, Finished],
    ) -> None:
        self._storage, self._id, self._workflow, self._wanted = storage, workflow_id, workflow, wanted
        self._done = done
        self._model = done[wanted.stage]
        if not self._model.output.meta.get("num_classes"):
            raise UserError(
                f"the model from '{wanted.stage}' has no classes: fine-tune it, and register what comes of it"
            )
        metric = wanted.champion.metric if wanted.champion is not None else None
        self._figures = model_page.chosen(figures(workflow, done, wanted.stage), wanted.stage, metric)
        self._place: tempfile.TemporaryDirectory[str] | None = None
        self._written: tuple[str, int] | None = None

    def run(
        self,
        registry: Registry,
        find: FindRun,
        *,
        busy: Callable[[float], None] = lambda seconds: None,
    ) -> Registered:
        """Do what is still to be done. May be called again after any failure.

        `busy` is told how many seconds the server may take for its next answer. Raises UserError, and NotFound where
        what is to be registered is gone.
        """
        name, digest = self._wanted.name, self._model.output.digest
        version, new = registry.version_of(name, digest), False
        if version is None:
            version, new = self._version(registry, find, busy), True
        else:
            self._add_figures(registry, name, version)
        decision = None
        if self._wanted.champion is not None:
            decision = choose_champion(registry, name, version.number, self._wanted.champion)
        return Registered(name=name, version=version.number, new=new, decision=decision, model_id=version.model_id)

    def _add_figures(self, registry: Registry, name: str, version: Version) -> None:
        """What has been measured since a version was made, or is not where it belongs."""
        registry.set_tags(name, version, model_page.figure_tags(self._figures, version.tags))
        if version.model_id is None:
            return
        known = registry.known_figures([version]).get(version.model_id, "{}")
        every = model_page.all_figures(self._figures, version.tags.get(model_page.FIGURES_TAG, "{}"), known)
        if every != known:
            registry.set_figures(version.model_id, every)
        registry.drop_tag(name, version, model_page.FIGURES_TAG)

    def _version(self, registry: Registry, find: FindRun, busy: Callable[[float], None]) -> Version:
        stage, digest, name = self._wanted.stage, self._model.output.digest, self._wanted.name
        run, whole = find(stage), find("workflow")
        served = self._served()
        about = model_page.params(served)
        commit = (read_origin(self._storage, self._id).get("git") or {}).get("commit")
        source = model_page.origin(self._id, self._storage.url, stage, self._model, commit)
        every = model_page.all_figures(self._figures)
        model = registry.make_model(
            digest, name=f"{self._workflow.name}-{stage}", run=run, params=about, tags={**source, FIGURES: every}
        )
        if (more := model_page.all_figures(self._figures, model.figures)) != model.figures:
            # Of one that stages have read, or that is registered under another name.
            registry.set_figures(model.id, more)
        if not model.ready:
            folder, size = self._files(served, model, run)
            busy(upload_seconds(size))
            registry.upload(model, folder, size)
        registry.show(model, run, whole, self._figures)
        text = model_page.description(
            address=f"models:/{name}@{CHAMPION}" if self._wanted.champion is not None else f"models:/{model.id}",
            model_id=model.id,
            about=about,
            source=source,
            figures=self._figures,
            classes=served.classes,
            pictures=served.pictures,
        )
        known = {key: source[key] for key in ("patchline.workflow", "patchline.stage")}
        tags = {**model_page.figure_tags(self._figures, {}), **known}
        return registry.make_version(name, digest, model, run=run, tags=tags, description=text)

    def _served(self) -> Served:
        return Served(
            output=self._model.output,
            evaluation=preprocessing(self._workflow, self._done, self._wanted.stage).model_dump(mode="json"),
            loss=training_loss(self._workflow, self._done, self._wanted.stage),
            example=self._example(),
            pictures=self._pictures(),
        )

    def _files(self, served: Served, model: LoggedModel, run: str | None) -> tuple[Path, int]:
        """The model's folder, written once however often the server fails."""
        if self._written is None or self._written[0] != model.id:
            # What a failure has left goes; this one goes when nobody needs it any more, at the latest with the process.
            self._place = tempfile.TemporaryDirectory(prefix="patchline-")
            folder = Path(self._place.name) / "model"
            size = write_folder(served, self._storage, folder, model_id=model.id, address=model.address, run=run)
            self._written = (model.id, size)
        assert self._place is not None
        return Path(self._place.name) / "model", self._written[1]

    def _pictures(self) -> dict[str, bytes]:
        """Those of the model's evaluations, small, by names that say whose they are. The runs have them as they are."""
        found = {}
        for name in evaluations(self._workflow, self._done, self._wanted.stage):
            output = self._done[name].output
            for path in [file["path"] for file in output.manifest["files"] if file["path"].endswith(".png")]:
                found[f"{name}-{path.replace('/', '-')}"] = small_picture(self._storage.read(output.key(path)))
        return found

    def _example(self) -> bytes | None:
        """An image that the model was measured on, or None where its data set is not there any more."""
        from stages.data.example import example_image

        outputs = [self._done[name].output for name in self._workflow.order() if name in self._done]
        data = [output for output in outputs if output.kind == "dataset"]
        own = [output for output in data if output.digest == self._model.output.meta.get("trained_on")]
        found = next(iter((*own, *data)), None)
        return None if found is None else example_image(self._storage, found)


def choose_champion(registry: Registry, name: str, own: int, rule: ChampionConfig) -> Decision:
    """Move the alias by its rule, and look again after each move: whoever moves it last has seen all versions."""
    moved: Decision | None = None
    for _ in range(ROUNDS):
        versions = registry.versions(name)
        figures = registry.known_figures(versions)
        candidates = [_candidate(version, figures, rule) for version in versions]
        holder = registry.champion(name)
        decision = decide(candidates, holder=holder, own=own, metric=rule.metric, higher=rule.higher)
        if decision.version is None or decision.version == holder:
            return moved if moved is not None and moved.version == holder else decision
        registry.make_champion(name, decision.version)
        moved = decision
    raise NotYet(f"the alias {CHAMPION} of {name} is moved by others all the time")


def _candidate(version: Version, figures: Mapping[str, str], rule: ChampionConfig) -> Candidate:
    known = (version.tags.get(model_page.FIGURES_TAG, "{}"), figures.get(version.model_id or "", "{}"))
    figure, data = model_page.measured(rule.metric, *known)
    return Candidate(version=version.number, figure=figure, data=data)
