"""`preflight`: whether a cluster, its storage and its tracking server are fit for training, before any is paid for."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any
from urllib.error import HTTPError

from cluster.errors import UserError
from cluster.preflight.conditions import broken_conditions
from cluster.preflight.machine import Asked
from cluster.storage import Storage
from pipeline import mlflow_ask
from pipeline.config import Workflow
from pipeline.mlflow_page import EXPERIMENT_PATH
from pipeline.plan import Question
from pipeline.preflight_comparison import Finding
from pipeline.preflight_findings import judged
from pipeline.preflight_survey import Length, Surveyed
from pipeline.preflight_workflow import bounds
from pipeline.settings import Settings
from pipeline.versions import check_versions
from stages.data.config import DataConfig
from stages.metrics import now_ms

ANSWER_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """All that was found."""

    findings: list[Finding]
    surveyed: Surveyed | None = None

    @property
    def fit(self) -> bool:
        """Whether nothing stands in the way."""
        return all(finding.level != "problem" for finding in self.findings)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {"fit": self.fit, **asdict(self)}


def preflight(
    settings: Settings,
    length: Length | None = None,
    *,
    survey: Callable[[Asked, Length], Surveyed] | None = None,
    workflow: Workflow | None = None,
    question: Question | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Preflight:
    """Check what the settings name: storage from here, and every machine of the cluster by `survey`, where it is given.

    Of a `workflow` it is predicted whether network or storage would hold its training up; of `question`, the sizes of
    data sets that are not there yet are taken. `tell` is given a line for each step. What is wrong is a finding;
    nothing is raised.
    """
    length, findings, surveyed = length or Length(), list[Finding](), None
    tell(f"conditional writes, in {settings.root}")
    storage, folder = _opened(settings), f"scratch/{now_ms()}-{secrets.token_hex(4)}"
    findings.append(storage if isinstance(storage, Finding) else conditions(storage, folder))
    if settings.mlflow.startswith("http"):
        tell(f"the tracking server, {settings.mlflow}")
        findings.append(tracking(settings.mlflow))
    if survey is not None:
        tell(f"versions, on {settings.jobs}")
        findings += _versions(settings)
    if survey is not None and not any(finding.level == "problem" for finding in findings):
        tell(f"machines and collectives, on {settings.jobs}: about {length.reduction + 2 * length.storage + 20:.0f} s")
        inputs = _inputs(workflow) or [DataConfig()]
        # Without a name it is below the temporary folder of each machine, whatever that is there.
        caches = tuple(dict.fromkeys(own.cache or "" for own in inputs))
        asked = Asked(root=settings.root, folder=folder, caches=caches, seconds=length.storage)
        try:
            surveyed = survey(asked, length)
            findings += judged(surveyed, cache_gigabytes=max(own.cache_gigabytes for own in inputs))
            if workflow is not None:
                findings += bounds(settings.storage(), workflow, surveyed, question)
        except UserError as error:
            findings.append(Finding(level="problem", check="machines", told=str(error)))
    return Preflight(findings=findings, surveyed=surveyed)


def _opened(settings: Settings) -> Storage | Finding:
    try:
        return settings.storage()
    except UserError as error:
        return Finding(level="problem", check="storage", told=str(error))


def _inputs(workflow: Workflow | None) -> list[DataConfig]:
    """How stages read images."""
    stages = workflow.stages.values() if workflow is not None else ()
    return [own for own in (getattr(stage, "input", None) for stage in stages) if isinstance(own, DataConfig)]


def conditions(storage: Storage, folder: str) -> Finding:
    """Whether the storage takes our writes, and keeps their conditions."""
    try:
        broken = broken_conditions(storage, folder)
    except OSError as error:
        return Finding(level="problem", check="storage", told=f"{error}: is it there, and are the credentials good?")
    if broken:
        told = (
            f"{storage.url} does not keep the conditions of writes: {'; '.join(broken)}. Two drivers could hold one "
            "workflow, and commits be lost: take a store that has conditional writes, such as AWS S3, GCS, R2, MinIO "
            "or SeaweedFS"
        )
        return Finding(level="problem", check="conditional writes", told=told)
    return Finding(level="ok", check="conditional writes", told=f"{storage.url} keeps them")


def tracking(address: str) -> Finding:
    """Whether an MLflow server answers there, and lets us in."""
    try:
        version = mlflow_ask.ask(address, "/version", ANSWER_SECONDS)[:100].decode(errors="replace").strip()
        _find_experiment(address)
    except HTTPError as error:
        if error.code in mlflow_ask.DENIED:
            told = f"{mlflow_ask.denied(address, error)}; without them, runs are not logged"
            return Finding(level="warning", check="MLflow", told=told)
        return Finding(level="problem", check="MLflow", told=f"{address} answers {error.code}: is it an MLflow server?")
    except OSError as error:
        told = f"{address} does not answer ({error}): runs wait for it, and are logged once it is there"
        return Finding(level="warning", check="MLflow", told=told)
    return Finding(level="ok", check="MLflow", told=f"{address} has version {version}")


def _find_experiment(address: str) -> None:
    """As a run begins to: a server that asks who one is tells its version to anybody."""
    try:
        mlflow_ask.ask(address, EXPERIMENT_PATH, ANSWER_SECONDS)
    except HTTPError as error:
        if error.code in mlflow_ask.DENIED:
            raise


def _versions(settings: Settings) -> Iterable[Finding]:
    lines = list[str]()
    try:
        check_versions(settings, lines.append)
    except UserError as error:
        return [Finding(level="problem", check="versions", told=str(error))]
    warned = [Finding(level="warning", check="versions", told=line) for line in lines]
    return warned or [Finding(level="ok", check="versions", told="Python's and Ray's are those of this machine")]
