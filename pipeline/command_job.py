"""A command of ours as a job on a Ray cluster, waited for; what it prints is its answer."""

from __future__ import annotations

import secrets
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster import jobs
from cluster.errors import UserError
from pipeline.api import PACKAGES, jobs_address
from pipeline.settings import Settings

POLL_SECONDS = 1.0
SHOWN = 15
"""Lines of a log's end that are shown where there is no answer in it."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A job that has ended."""

    job: str
    address: str
    log: str

    def line(self, beginning: str) -> str | None:
        """The rest of the last line of the log that begins so; None where there is none."""
        lines = [line for line in self.log.splitlines() if line.startswith(beginning)]
        return lines[-1].removeprefix(beginning) if lines else None

    def missing(self, what: str) -> UserError:
        """The error where the log has no answer in it."""
        end = "\n".join(self.log.splitlines()[-SHOWN:])
        return UserError(f"the job {self.job} on {self.address} has {what} nothing; the end of its log:\n{end}")


def run_as_job(
    settings: Settings,
    name: str,
    words: Sequence[str],
    *,
    code: Sequence[Path] = (),
    metadata: Mapping[str, str] | None = None,
) -> Answer:
    """Run Python with these arguments on the cluster that the settings name, and wait for its end.

    `name` is how the job's id begins; `code` is what of the user's is sent along. Ctrl-C stops the job. Raises
    UserError where no cluster answers.
    """
    address, job = jobs_address(settings), f"{name}-{secrets.token_hex(3)}"
    # The local stack runs on this very installation.
    python = sys.executable if settings.local else "python"
    jobs.submit(
        address,
        f"exec {shlex.join([python, *words])}",
        submission_id=job,
        environment=settings.passed_on(),
        modules=None if settings.local else [Path(__file__).parents[1] / package for package in PACKAGES],
        code=code,
        metadata=metadata or {},
    )
    try:
        while jobs.status(address, job) in ("PENDING", "RUNNING"):
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        jobs.stop(address, job)
        raise
    return Answer(job=job, address=address, log=jobs.logs(address, job))
