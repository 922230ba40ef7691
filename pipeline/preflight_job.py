"""`preflight` on a Ray cluster: a job that asks its machines, and what they have said."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

from cluster.preflight.machine import Asked, Machine
from pipeline.command_job import run_as_job
from pipeline.preflight_survey import Length, Surveyed, surveyed
from pipeline.settings import Settings

RESULT = "surveyed: "
"""How the line of the job's log begins that has the answer."""


def on_cluster(settings: Settings, asked: Asked, length: Length) -> Surveyed:
    """Have the cluster's machines asked, and wait for it.

    Raises UserError where no cluster answers, and where the job found nothing, with the end of its log.
    """
    words = ["-m", "pipeline.preflight_job", json.dumps([asdict(asked), asdict(length)])]
    answer = run_as_job(settings, "preflight", words)
    if (found := answer.line(RESULT)) is None:
        raise answer.missing("found")
    return _read(json.loads(found))


def _read(document: dict[str, Any]) -> Surveyed:
    from stages.training.reduction import Ranked

    return Surveyed(
        machines={name: Machine(**machine) for name, machine in document["machines"].items()},
        errors=document["errors"],
        clocks={name: (ahead, uncertain) for name, (ahead, uncertain) in document["clocks"].items()},
        ranks=[Ranked(**rank) for rank in document["ranks"]],
        unmeasured=document["unmeasured"],
    )


def main() -> None:
    """What the job runs."""
    asked, length = json.loads(sys.argv[1])
    print(RESULT + json.dumps(asdict(surveyed(Asked(**asked), Length(**length)))), flush=True)


if __name__ == "__main__":
    main()
