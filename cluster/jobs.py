"""Ray Jobs: submit a command to a cluster, ask for its state and log, stop it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from cluster.environment import in_force
from cluster.errors import UserError

T = TypeVar("T")


def check(address: str) -> None:
    """Ask whether a job server answers at `address` and takes us. Raises UserError."""
    _ask(address, lambda client: client.get_version())


def submit(
    address: str,
    command: str,
    *,
    submission_id: str,
    environment: Mapping[str, str],
    modules: Sequence[Path] | None,
    metadata: Mapping[str, str],
) -> None:
    """Start a command as a job. `modules` are packages to send along, where the cluster lacks them.

    Raises UserError where no job server answers at `address` or it refuses us.
    """
    runtime: dict[str, Any] = {"env_vars": dict(environment)}
    if modules:
        runtime["py_modules"] = [str(path) for path in modules]
    try:
        _ask(
            address,
            lambda client: client.submit_job(
                entrypoint=command, submission_id=submission_id, runtime_env=runtime, metadata=dict(metadata)
            ),
        )
    except RuntimeError as error:
        raise UserError(f"the Ray cluster at {address} did not take the job: {error}") from None


def status(address: str, submission_id: str) -> str:
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED; GONE where the cluster does not know the job."""
    try:
        return str(_ask(address, lambda client: client.get_job_status(submission_id)).value)
    except RuntimeError as error:
        if "404" in str(error) or "does not exist" in str(error):
            return "GONE"
        raise


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
            client = JobSubmissionClient(address)
        return request(client)
    except AuthenticationError:
        raise UserError(
            f"the Ray cluster at {address} refused us: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to its token"
        ) from None
    except ConnectionError as error:
        raise UserError(
            f"no Ray job server answers at {address}: expected an address such as http://HOST:8265 ({error})"
        ) from None
