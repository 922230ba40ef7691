"""Which version of a registered model is its champion: a rule over versions, without a server."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A version, and what is known of the figure that decides."""

    version: int
    figure: float | None = None
    data: str | None = None
    """Digest of the data set that the figure was measured on."""

    @property
    def measured(self) -> bool:
        return self.figure is not None and math.isfinite(self.figure) and bool(self.data)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The version that the alias belongs to, if any, and why."""

    version: int | None
    reason: str


def decide(candidates: Iterable[Candidate], *, holder: int | None, own: int, metric: str, higher: bool) -> Decision:
    """Who is champion among the versions of a registered model, of which `own` is the newest known, `holder` the last.

    Figures on different data sets say nothing of each other. So the alias moves among the versions that were measured
    on what its holder was measured on, and stays where its holder was not measured; without a holder, among those of
    `own`'s. Of equal ones the holder keeps it, else the lowest number has it.
    """
    known = {candidate.version: candidate for candidate in candidates}
    mine, held = known.get(own, Candidate(version=own)), known.get(holder) if holder is not None else None
    if holder is not None and (held is None or not held.measured):
        return Decision(version=holder, reason=f"stays with version {holder}, of which no {metric} is known")
    if held is None and not mine.measured:
        return Decision(version=None, reason=f"goes to nobody: version {own} has no {metric}")
    data = (held or mine).data
    rivals = [candidate for candidate in known.values() if candidate.measured and candidate.data == data]
    best = min(rivals, key=lambda one: (_loss(one, higher), one.version != holder, one.version))
    return Decision(version=best.version, reason=_reason(best, held, mine, metric, data))


def _loss(candidate: Candidate, higher: bool) -> float:
    assert candidate.figure is not None
    return -candidate.figure if higher else candidate.figure


def _reason(best: Candidate, held: Candidate | None, mine: Candidate, metric: str, data: str | None) -> str:
    figure = f"{metric} {best.figure:.6g}"
    if held is None:
        return f"goes to version {best.version}: {figure}"
    if best.version != held.version:
        return f"moves from version {held.version} to version {best.version}: {figure} beats {held.figure:.6g}"
    stays = f"stays with version {held.version}: {figure}"
    if mine.version == held.version:
        return stays
    if not mine.measured:
        return f"{stays}; version {mine.version} has no such figure"
    if mine.data != data:
        return f"{stays}, on another data set than version {mine.version}: move it by hand if that is meant"
    return f"{stays} against {mine.figure:.6g} of version {mine.version}"
