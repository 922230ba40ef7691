"""Disturbances of a training run, drawn from a seed: where, at which update, and who is killed."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path

POINTS = ("update", "snapshot", "upload", "manifest", "commit", "committed")
"""In their order within one update: during its computation, while its checkpoint is copied, while it is uploaded,
between parts and manifest, between manifest and HEAD, right after HEAD."""
VICTIMS = ("rank 0", "rank 1", "both ranks", "driver")


@dataclass(frozen=True, kw_only=True)
class Disturbance:
    """One SIGKILL, or two at once."""

    point: str
    update: int
    victim: str


def may_stand(point: str, victim: str) -> bool:
    """Whether the checkpoint of this update may be committed although somebody was killed: rank 0 goes on with it."""
    return point == "committed" or (point in ("manifest", "commit") and victim in ("rank 1", "driver"))


def draw(seed: int, kills: int, *, updates: int, save_every: int) -> list[Disturbance]:
    """Disturbances in the order in which a run meets them; every point and every victim is there at least once.

    A run goes on from its newest checkpoint, so none may lie before one that is committed. At least half come
    after the first checkpoint.
    """
    assert kills >= len(POINTS), f"{kills} kills cannot hit {len(POINTS)} points"
    rng = random.Random(seed)
    victims = list(VICTIMS) + [rng.choice(VICTIMS) for _ in range(kills - len(VICTIMS))]
    rng.shuffle(victims)
    points = list(POINTS) + [rng.choice(POINTS) for _ in range(kills - len(POINTS))]
    # A committed checkpoint is not made again: each of these is met once.
    commits = list(range(2 * save_every, updates + 1, save_every))
    rng.shuffle(commits)
    places: list[tuple[int, bool, int, str]] = []
    for number, (point, victim) in enumerate(zip(points, victims, strict=True)):
        if may_stand(point, victim) and not commits:
            point = "update"
        early = number >= len(POINTS) and rng.random() < 0.1
        update = rng.randint(2 if early else save_every + 1, updates - 1)
        if may_stand(point, victim):
            update = commits.pop()
        elif point != "update":
            update = -(-update // save_every) * save_every
        # The one after which the update may not come again is the last one there.
        places.append((update, may_stand(point, victim), POINTS.index(point), victim))
    return [
        Disturbance(point=POINTS[point], update=update, victim=victim) for update, _, point, victim in sorted(places)
    ]


def write(folder: Path, plan: list[Disturbance]) -> None:
    """Put a plan where the workers find it."""
    (folder / "plan.json").write_text(json.dumps([asdict(item) for item in plan]))


def read(folder: Path) -> list[Disturbance]:
    """The plan in a folder."""
    return [Disturbance(**item) for item in json.loads((folder / "plan.json").read_text())]
