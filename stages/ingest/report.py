"""What was met while images were read: which were left out and why, and what the others are."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.errors import UserError
from stages.context import Context
from stages.ingest.part import Part
from stages.ingest.sources.unused import most_common

_NO_NAME = re.compile(r"[^A-Za-z0-9_ -]")
"""What the tracker's names of metrics do not have."""
SHOWN = 5
"""Bad images that an error message names."""


class Report:
    """Of all parts of an ingestion."""

    def __init__(self, max_bad: float, parts: Sequence[Part], unused: Mapping[str, int]) -> None:
        self._max_bad = max_bad
        self._bad = [entry for part in parts for entry in part.bad]
        self._total = len(self._bad) + sum(part.shard.count for part in parts if part.shard is not None)
        self._unused = most_common(unused)
        self._traits: Counter[str] = Counter()
        for part in parts:
            self._traits.update(part.traits)

    def check(self, address: str) -> None:
        """Raise UserError where more than `max_bad` of the images are bad. All their names are at `address`."""
        if len(self._bad) <= self._max_bad * self._total:
            return
        reasons = ", ".join(f"{count} {reason}" for reason, count in self._reasons().most_common())
        names = "; ".join(f"{name}: {reason}" for name, reason in self._bad[:SHOWN])
        raise UserError(
            f"{len(self._bad)} of {self._total} images are bad, more than max_bad={self._max_bad} ({reasons}). "
            f"Mend or remove them, or raise max_bad. All: {address}. The first ones: {names}"
        )

    def tell_unused(self) -> None:
        """Say in one line which files of the source are not used, where there are any."""
        if self._unused:
            kinds = ", ".join(f"{count} {kind}" for kind, count in self._unused.items())
            print(f"not used, since they are no images in a class: {kinds}", flush=True)

    def metrics(self) -> dict[str, float]:
        """Counts by reason, by trait and by kind of unused file, for the tracker."""
        found = {f"bad/{reason}": float(count) for reason, count in sorted(self._reasons().items())}
        traits = {f"traits/{name}": float(count) for name, count in sorted(self._traits.items())}
        kinds = {_NO_NAME.sub("_", kind.removeprefix(".")): count for kind, count in self._unused.items()}
        unused = {f"unused/{kind}": float(count) for kind, count in kinds.items()}
        totals = {"bad": float(len(self._bad)), "unused": float(sum(self._unused.values()))}
        return {**totals, **found, **traits, **unused}

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Reasons, traits and kinds of unused files with their counts, where there are any."""
        rows = [{"what": f"left out: {reason}", "images": count} for reason, count in self._reasons().most_common()]
        rows += [{"what": name, "images": count} for name, count in self._traits.most_common()]
        rows += [{"what": f"not used: {kind}", "images": count} for kind, count in self._unused.items()]
        return {"report": rows} if rows else {}

    def write(self, context: Context) -> dict[str, Any]:
        """Store the names of all bad images with their reasons; returns the file's entry for the manifest."""
        lines = [json.dumps({"image": name, "reason": reason}) for name, reason in self._bad]
        return context.write("bad.jsonl", "".join(f"{line}\n" for line in lines).encode())

    def _reasons(self) -> Counter[str]:
        # What follows the colon belongs to the one image.
        return Counter(reason.partition(":")[0] for _, reason in self._bad)
