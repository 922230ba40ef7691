"""Ray Jobs: submit a command to a cluster, ask for its state and log, stop it."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from cluster import job_server
from cluster.environment import in_force
from cluster.errors import UserError

T = TypeVar("T")
UPLOADERS = ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging")
"""Loggers of what sends packages to a cluster."""


@dataclass(frozen=True, kw_only=True)
class Versions:
    """What a cluster runs on; `python` is None where it does not say."""

    ray: str
    python: str | None


def check(address: str) -> None:
    """Ask whether a job server answers at `address` and takes us. Raises UserError."""
    versions(address)


def versions(address: str) -> Versions:
    """Ray's and Python's versions on the cluster, which Ray holds every machine against that joins it.

    Raises UserError where no job server answers at `address`, or it refuses us.
    """
    found = job_server.ask(address, "/api/version")
    if found is None or "ray_version" not in found:
        raise UserError(f"{address} is no Ray job server: expected an address such as http://HOST:8265")
    answer = job_server.ask(address, "/api/v0/cluster_metadata") or {}
    about = answer.get("data") or {}
    return Versions(ray=str(found["ray_version"]), python=about.get("pythonVersion") or about.get("python_version"))


def submit(
    address: str,
    command: str,
    *,
    submission_id: str,
    environment: Mapping[str, str],
    modules: Sequence[Path] | None,
    code: Sequence[Path] = (),
    metadata: Mapping[str, str],
) -> None:
    """Start a command as a job. `modules` are packages to send along, where the cluster lacks them; `code` are
    packages and single modules of the user's, which come into the folder that the job runs in.

    Raises UserError where no job server answers at `address` or it refuses us.
    """
    runtime: dict[str, Any] = {"env_vars": dict(environment)}
    if modules:
        runtime["py_modules"] = [str(path) for path in modules]
    try:
        with _together(code) as folder, _quiet():
            if folder is not None:
                runtime["working_dir"] = str(folder)
            _ask(
                address,
                lambda client: client.submit_job(
                    entrypoint=command, submission_id=submission_id, runtime_env=runtime, metadata=dict(metadata)
                ),
            )
    except RuntimeError as error:
        raise UserError(f"the Ray cluster at {address} did not take the job: {error}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Within it, Ray does not tell of each package that it uploads."""
    # Imported first: it sets its logger's level when it is.
    import ray.job_submission  # noqa: F401

    loggers = [logging.getLogger(name) for name in UPLOADERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _together(code: Sequence[Path]) -> Iterator[Path | None]:
    """Copies of packages and modules in one folder, for as long as they are being sent; None where there are none."""
    if not code:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="patchline-code-") as folder:
        for path in code:
            if path.is_dir():
                shutil.copytree(path, Path(folder) / path.name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(path, folder)
        yield Path(folder)


def status(address: str, submission_id: str) -> str:
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED; GONE where the cluster does not know the job."""
    found = job_server.ask(address, f"/api/jobs/{quote(submission_id)}")
    return "GONE" if found is None else str(found["status"])


def logs(address: str, submission_id: str) -> str:
    """What the job has printed so far."""
    return _ask(address, lambda client: client.get_job_logs(submission_id))


def stop(address: str, submission_id: str) -> None:
    """Ask a job to end: SIGTERM, and SIGKILL after the cluster's waiting time."""
    _ask(address, lambda client: client.stop_job(submission_id))


def _ask(address: str, request: Callable[[Any], T]) -> T:
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        # Ray's client prefers these to the address that it is given.
        with in_force({"RAY_API_SERVER_ADDRESS": None, "RAY_ADDRESS": None}):
            client = JobSubmissionClient(address, headers=job_server.authorization())
        return request(client)
    except AuthenticationError:
        raise UserError(
            f"the Ray cluster at {address} refused us: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to its token"
        ) from None
    except ConnectionError as error:
        raise UserError(
            f"no Ray job server answers at {address}: expected an address such as http://HOST:8265 ({error})"
        ) from None
