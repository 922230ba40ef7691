"""`bench-data` on a Ray cluster: a job that has a gang measured there, and what it has found."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pipeline.command_job import run_as_job
from pipeline.feeding import Training, feeding_of, in_a_gang
from pipeline.kinds import KINDS
from pipeline.settings import Settings

if TYPE_CHECKING:
    from stages.data.feeding import Fed, Feeding

RESULT = "measured: "
"""How the line of the job's log begins that has the answer."""


def on_cluster(settings: Settings, workers: int, feeding: Feeding, config: Training) -> list[tuple[str, Fed]]:
    """Have `workers` on the cluster measured at once, and wait for it.

    Raises UserError where no cluster answers, and where the job found nothing, with the end of its log.
    """
    from stages.data.feeding import Fed

    asked = {
        "root": settings.root,
        "workers": workers,
        "kind": config.kind,
        "config": config.model_dump(mode="json", by_alias=True),
        "dataset": feeding.dataset.prefix,
        "seconds": feeding.seconds,
    }
    answer = run_as_job(settings, "bench-data", ["-m", "pipeline.feeding_job", json.dumps(asked)])
    if (found := answer.line(RESULT)) is None:
        raise answer.missing("measured")
    return [(name, Fed(**fed)) for name, fed in json.loads(found)]


def main() -> None:
    """What the job runs."""
    from cluster.storage import open_storage
    from stages.context import read_output

    asked: dict[str, Any] = json.loads(sys.argv[1])
    storage = open_storage(asked["root"])
    config: Any = KINDS[asked["kind"]].model_validate(asked["config"])
    feeding = feeding_of(storage, read_output(storage, asked["dataset"]), config, asked["seconds"])
    found = in_a_gang(asked["workers"], feeding, config)
    print(RESULT + json.dumps([(name, asdict(fed)) for name, fed in found]), flush=True)


if __name__ == "__main__":
    main()
