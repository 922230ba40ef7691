"""What was seen and proposed, in words."""

from __future__ import annotations

import shlex
from pathlib import Path

from pipeline.beginning.here import Here
from pipeline.beginning.look import Seen
from pipeline.beginning.proposal import UNCOUNTED, Proposal


def seen_in_words(seen: Seen, below: Path | None = None) -> str:
    """One line: where the images are, as seen from the folder `below`, how many, how large."""
    shards = seen.source.get("shards", {})
    tars = ", ".join(f"{split}: {pattern}" for split, pattern in shards.items())
    place = str(seen.source.get("path") or tars or "The digits of scikit-learn")
    if below is not None and Path(place).is_relative_to(below):
        place = str(Path(place).relative_to(below))
    if seen.train is None:
        return f"{place}: not counted before ingestion; the values are for {UNCOUNTED:,} images"
    about = "" if seen.exact else "about "
    total = seen.train + sum(seen.others.values())
    splits = "".join(f", {count:,} of them for {split}" for split, count in seen.others.items())
    side = f", about {seen.side} pixels on their shorter side" if seen.side is not None else ""
    return f"{place}: {about}{total:,} images{splits}, {seen.classes:,} classes{side}"


def here_in_words(here: Here) -> str:
    """One line: what this machine has."""
    memory = f", {here.memory / 2**30:.0f} GiB of memory" if here.memory is not None else ""
    names = sorted({gpu.name for gpu in here.gpus})
    gpus = f"{len(here.gpus)} × {', '.join(names)}" if names else "no GPU"
    return f"{here.cores} core{'s' if here.cores > 1 else ''}{memory}, {gpus}"


def time_in_words(proposal: Proposal) -> str | None:
    """How long the whole workflow takes here, roughly; None where it runs elsewhere."""
    if proposal.seconds is None:
        return None
    minutes = proposal.seconds / 60
    if minutes < 90:
        return f"about {max(1, round(minutes))} min on this machine"
    hours = minutes / 60
    return f"about {hours:.0f} h on this machine" if hours < 48 else f"about {hours / 24:.0f} days on this machine"


def commands(proposal: Proposal, path: str, program: str, *, up: bool) -> list[tuple[str, str]]:
    """What to do next: commands with their meanings. `up` says whether the local stack runs."""
    where, file = proposal.answers.where, shlex.quote(path)
    found = [(f"{program} plan {file}", "what would run, before anything does")]
    if where == "local":
        found += [] if up else [(f"{program} up", "starts Ray, S3 and MLflow on this machine")]
        return [*found, (f"{program} submit {file} --follow", "runs it")]
    address = "http://HEAD:8265" if where == "cluster" else where
    places = f"--address {address} --root s3://BUCKET/PREFIX --mlflow http://HOST:5000"
    return [
        *found,
        (f"{program} preflight {places}", "whether the cluster is fit"),
        (f"{program} submit {file} {places} --follow", "runs it"),
    ]
