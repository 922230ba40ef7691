"""The tables of docs/scale.md, from what was measured: text in Markdown by its name."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from cluster.storage.many import AT_ONCE
from pipeline.display_estimate import days
from pipeline.estimate_failures import PREFIX_GETS, REQUEST_SECONDS, commit_seconds, restart_seconds, restore_seconds
from pipeline.worker import looks_at
from tests.bench.scale_cases import (
    BUCKET_BYTES_PER_S,
    DATA,
    DISK_BYTES,
    GPUS_EACH,
    IMAGE_BYTES,
    MEASURED,
    PAPER,
    PER_MACHINE,
    PER_TAR,
    TAR_BYTES,
)
from tests.bench.scale_lost import intervals, lost, spares
from tests.bench.scale_markdown import size, table
from tests.bench.scale_reading import reading


def data_sets() -> str:
    """What a data set is, at rest and in memory."""
    rows = []
    for name, images in DATA.items():
        tars = math.ceil(images / PER_TAR)
        rows.append(
            (
                name,
                f"{images:,}",
                f"{tars:,}",
                size(images * IMAGE_BYTES),
                f"{min(1.0, DISK_BYTES / (images * IMAGE_BYTES)):.0%}",
                days(images * IMAGE_BYTES / BUCKET_BYTES_PER_S / 86400),
                size(tars * MEASURED["table_bytes_per_shard"]),
                size(images * MEASURED["index_bytes_per_sample"]),
                # 80.6 MB and 0.65 s at a million tars: `make bench-order`.
                size(80.6 * tars),
                f"{max(0.05, 0.65e-6 * tars):.2g}",
            )
        )
    head = (
        "", "images", "tars", "bytes", "on 24 TB", "to fetch all", "table", "all indexes",
        "order, each rank", "s to begin",
    )  # fmt: skip
    return table(head, rows)


def speeds() -> str:
    """What the three runs read and save."""
    rows = []
    for own in PAPER:
        used = own.images_per_s * IMAGE_BYTES
        rows.append(
            (
                own.title,
                f"{own.gpus:,}",
                f"{own.global_batch:,}",
                f"{own.images_per_s:,.0f}",
                size(used),
                size(used / own.machines),
                f"{own.update_seconds:.3f}",
                size(own.checkpoint_bytes),
                size(own.checkpoint_bytes / own.gpus),
            )
        )
    head = ("", "GPUs", "batch", "images/s", "bytes/s", "of a machine", "s an update", "checkpoint", "of a rank")
    return table(head, rows)


def first_epoch() -> str:
    """What a machine fetches of a data set while it reads it for the first time, by the number of streams."""
    rows = []
    per_tar = sum(MEASURED["fetch_tar"].values()) + sum(MEASURED["fetch_index"].values())
    for own in PAPER:
        for streams, window in ((16, 16_384), (own.global_batch, 2048)):
            found = reading(
                tars=math.ceil(DATA["ImageNet-21k"] / PER_TAR), per_tar=PER_TAR, machines=own.machines,
                batch=own.global_batch, streams=streams, window=window,
            )  # fmt: skip
            fetched = own.images_per_s * IMAGE_BYTES * found.share
            asked = own.machines * fetched / TAR_BYTES * per_tar
            rows.append(
                (
                    f"{own.title}, {own.gpus:,} GPUs",
                    f"{streams:,}",
                    f"{window:,}",
                    f"{found.share:.1%}",
                    size(fetched),
                    f"{asked:,.0f}",
                    size(2 * found.open * TAR_BYTES),
                    f"{found.again:.1%}",
                )
            )
    head = (
        "", "streams", "window", "read by a machine", "bytes/s of each", "GET/s of all", "two windows",
        "known in the next epoch",
    )  # fmt: skip
    return table(head, rows)


def samples() -> str:
    """`fetch: samples`: a range request for each image."""
    rows = [
        (f"{own.title}, {own.gpus:,} GPUs", f"{own.images_per_s:,.0f}", f"{own.images_per_s / PREFIX_GETS:,.0f}")
        for own in PAPER
    ]
    return table(("", "GET/s", "times S3's 5,500 of a prefix"), rows)


def steady() -> str:
    """Requests a second that go on whatever happens."""
    keeper, curves = MEASURED["keeper"], MEASURED["curves_1"]["GET"] / 2
    told = {
        "every rank looks for a request to stop": [MEASURED["stop_64"]["GET"], *map(looks, GPUS_EACH[1:])],
        "the same, one look a second of each rank, as it was": [float(gpus) for gpus in GPUS_EACH],
        "the driver renews two leases and looks for a cancel: reads": [keeper["GET"]] * 3,
        "and writes": [keeper["PUT"]] * 3,
        "the driver reads points for MLflow": [curves] * 3,
        "the driver looks for checkpoints to evaluate": [0.5] * 3,
        "rank 0 writes its points": [MEASURED["metrics"]["PUT"]] * 3,
        "ranks write their logs, if each prints in each second": [MEASURED["log"]["PUT"] * gpus for gpus in GPUS_EACH],
        "a supervisor looks at a workflow": [0.2] * 3,
    }
    rows = [(what, *(f"{rate:,.1f}" for rate in rates)) for what, rates in told.items()]
    return table(("requests a second", *(f"{gpus:,} GPUs" for gpus in GPUS_EACH)), rows)


def looks(ranks: int) -> float:
    """For a request to stop, by so many ranks in a second, which take turns."""
    _, interval = looks_at(0, ranks)
    return ranks / interval


def objects() -> str:
    """What a checkpoint's objects cost, at a tenth of a second for a request."""
    rows = []
    for gpus in GPUS_EACH:
        machines, read = gpus // PER_MACHINE, per_rank("restore", "GET", gpus) + per_rank("restore", "HEAD", gpus)
        rows.append(
            (
                f"{gpus:,}",
                f"{per_rank('store', 'PUT', gpus):,.0f}",
                size(manifest_bytes(gpus)),
                f"{gpus * REQUEST_SECONDS:,.0f}",
                f"{commit_seconds(gpus):.1f}",
                f"{per_rank('delete', 'DELETE', gpus) * REQUEST_SECONDS:,.0f}",
                f"{per_rank('delete', 'DELETE', gpus) * REQUEST_SECONDS / AT_ONCE:,.0f}",
                f"{machines * read:,.0f}",
                f"{read * REQUEST_SECONDS:,.0f}",
                f"{restore_seconds(read, machines):,.0f}",
                f"{restart_seconds(gpus, machines):,.0f}",
            )
        )
    head = (
        "ranks", "objects", "manifest", "s to commit, was", "is", "s to delete, was", "is",
        "requests of a restart", "s of each machine, was", "is", "R, s",
    )  # fmt: skip
    return table(head, rows)


def per_rank(what: str, kind: str, ranks: int) -> float:
    """Requests of this kind for so many ranks, on the line through what was measured for 8 and 64."""
    few, many = MEASURED[f"{what}_8"][kind], MEASURED[f"{what}_64"][kind]
    return few + (many - few) / (64 - 8) * (ranks - 8)


def manifest_bytes(ranks: int) -> float:
    few, many = MEASURED["manifest_bytes_8"], MEASURED["manifest_bytes_64"]
    return few + (many - few) / (64 - 8) * (ranks - 8)


def restarts() -> str:
    """Bytes that come to each machine, and to all, when a run goes on."""
    rows = [
        (
            f"{own.title}, {own.gpus:,} GPUs",
            size(own.checkpoint_bytes),
            f"{own.checkpoint_bytes / 1e9:,.0f}",
            size(own.checkpoint_bytes * own.machines),
        )
        for own in PAPER
    ]
    return table(("", "to each machine", "s at 1 GB/s", "from the bucket"), rows)


def watchdog() -> str:
    """What rank 0's store answers, a second."""
    rows = []
    for ranks in (64, 1024):
        lookers = min(ranks, 16)
        milliseconds, looked = MEASURED[f"watchdog_ms_{ranks}"], MEASURED[f"watchdog_bytes_{ranks}"]
        rows.append(
            (
                f"{ranks:,}",
                f"{milliseconds * ranks / 1000:.2f}",
                size(looked * ranks),
                f"{milliseconds * lookers / 1000:.3f}",
                size(looked * lookers),
            )
        )
    return table(("ranks", "each looks: s of a core", "bytes", "16 look: s of a core", "bytes"), rows)


def growth() -> str:
    """What grows with what."""
    one = MEASURED
    rows = [
        ("HEAD.json", f"{one['head_bytes']:.0f}", "", "read and replaced every five seconds and at each commit"),
        ("", f"{one['head_bytes_per_checkpoint']:.0f}", "a checkpoint that is kept", "1,000 of them: 91 kB"),
        ("", f"{one['head_bytes_per_attempt']:.0f}", "an attempt that committed", "1,000 of them: 43 kB"),
        ("events", f"{one['event_bytes']:.0f}", "an event", "about five an attempt"),
        ("metrics", f"{one['point_bytes']:.0f}", "a point", "about 20 points at each `log_every`"),
        ("a data set's table", f"{one['table_bytes_per_shard']:.0f}", "a tar", "once on each machine"),
        ("its classes' table", f"{one['class_bytes_per_shard_and_class']:.0f}", "a tar and class in it", ""),
        ("indexes", f"{one['index_bytes_per_sample']:.0f}", "an image", "with its tar"),
        ("a checkpoint's manifest", f"{manifest_bytes(65) - manifest_bytes(64):.0f}", "a rank", ""),
    ]
    return table(("document", "bytes", "for each", ""), rows)


TABLES: dict[str, Callable[[], str]] = {
    found.__name__: found
    for found in (
        data_sets, speeds, first_epoch, samples, steady, objects, restarts, watchdog, growth, lost, intervals, spares,
    )
}  # fmt: skip


def filled(page: str) -> str:
    """The page with its tables made anew. They stand behind lines `<!-- table: NAME -->`, up to an empty line."""
    return re.sub(
        r"(?<=<!-- table: )(\w+)( -->\n)(?:\|.*\n)*", lambda found: f"{found[1]}{found[2]}{TABLES[found[1]]()}", page
    )
