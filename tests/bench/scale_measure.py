"""What single acts of the real code ask of storage, and how large its documents are: the constants of docs/scale.md.

Requests are counted where they leave the process, below boto3, on a SeaweedFS of this machine.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

import torch

from cluster.gang import Place
from cluster.storage import Storage
from pipeline.curves import Curves
from pipeline.head import Head, HeadDocument, commit_checkpoint
from pipeline.keeper import LeaseKeeper
from pipeline.logs import LogShipper
from pipeline.record import EventLog
from pipeline.worker import StopWatch
from stages.data.cache import ShardCache
from stages.data.cache_account import Account
from stages.data.index import make_index
from stages.data.table import File, Shard, class_counts_bytes, table_bytes
from stages.metrics import MetricWriter
from stages.training.checkpoint import CheckpointWriter
from stages.training.keeping import delete_checkpoint
from stages.training.manifest import Position
from stages.training.restore import CheckpointFiles
from stages.training.tensors import Piece
from tests.bench.ranks import rank_of

SECONDS = 10.0
"""That what happens by the clock is watched."""
FOLDER = "stages/pretrain/0123456789abcdef0123"
RANKS = (8, 64)


@contextmanager
def requests() -> Iterator[Counter[str]]:
    """Counts the requests to S3 of this process by their method; lists apart from other reads."""
    from botocore.httpsession import URLLib3Session

    seen: Counter[str] = Counter()
    send = URLLib3Session.send

    def counted(self: Any, request: Any) -> Any:
        seen["LIST" if "list-type" in request.url else str(request.method)] += 1
        return send(self, request)

    URLLib3Session.send = counted  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield seen
    finally:
        URLLib3Session.send = send


def fetching(storage: Storage, home: Path) -> dict[str, Any]:
    """A cache that fetches a tar of the default size, and its index."""
    found = {}
    cache = ShardCache(storage, "shards", home / "cache")
    for name, size in (("tar", 256 * 2**20), ("index", 16 * 10_000)):
        path = home / name
        path.write_bytes(bytes(size))
        digest = storage.upload(f"shards/{name}", path)
        with requests() as seen:
            cache.read(File(address=name, bytes=size, sha256=digest.sha256))
        found[f"fetch_{name}"] = dict(seen)
    return found


def checkpoints(storage: Storage, home: Path) -> dict[str, Any]:
    """A checkpoint of some ranks: stored, committed, brought to a machine, and removed."""
    found: dict[str, Any] = {}
    for ranks in RANKS:
        head = Head.acquire(storage, f"{FOLDER}-{ranks}", "bench", ttl=15)
        assert head is not None
        attempt = head.new_attempt().attempt
        prefix = f"{head.folder}/checkpoints/00000100-a{attempt}"
        with requests() as seen:
            _store(storage, head, ranks, attempt)
        found[f"store_{ranks}"] = dict(seen)
        sizes = dict(storage.sizes(f"{prefix}/"))
        found[f"manifest_bytes_{ranks}"] = sizes[f"{prefix}/MANIFEST.json"]
        found["part_bytes"] = sizes[f"{prefix}/part-0000.json"]
        (folder := home / f"restored-{ranks}").mkdir()
        with requests() as seen:
            CheckpointFiles(folder).fetch(storage, prefix)
        found[f"restore_{ranks}"] = dict(seen)
        with requests() as seen:
            delete_checkpoint(storage, prefix)
        found[f"delete_{ranks}"] = dict(seen)
    return found


def _store(storage: Storage, head: Head, ranks: int, attempt: int) -> None:
    """All ranks of a gang store what they hold, each as the training loop has it done."""

    def commit(prefix: str, update: int, keep: Any) -> tuple[str, ...]:
        return commit_checkpoint(storage, head.folder, head.epoch, attempt, prefix, update, keep, owner="bench")

    def save(rank: int) -> None:
        own = replace(rank_of(storage, head.folder, rank, ranks), attempt=attempt, commit_checkpoint=commit)
        pieces = [
            Piece(name="encoder.0.weight", key=key, start=1000 * rank, tensor=torch.zeros(1000), shape=(1000 * ranks,))
            for key in ("weight", "exp_avg", "exp_avg_sq")
        ]
        tensors = SimpleNamespace(own=lambda world_size, rank: pieces)
        engine: Any = SimpleNamespace(device=torch.device("cpu"), tensors=tensors)
        writer = CheckpointWriter(own, None, {}, set)
        writer.save(engine, Position(data="0" * 64, update=100))
        writer.wait()

    with ThreadPoolExecutor(ranks) as pool:
        list(pool.map(save, range(ranks)))


def watching(storage: Storage) -> dict[str, Any]:
    """What goes on by the clock, in requests a second."""
    found: dict[str, Any] = {}
    for ranks in (8, 64):
        with requests() as seen:
            watches = [StopWatch(storage, "none", Place(rank=n, world_size=ranks, local_rank=0)) for n in range(ranks)]
            time.sleep(SECONDS)
            for watch in watches:
                watch.close()
        found[f"stop_{ranks}"] = _rates(seen)
    workflow, stage = (Head.acquire(storage, folder, "bench", ttl=15) for folder in ("workflows/w", f"{FOLDER}-s"))
    assert workflow is not None
    assert stage is not None
    keeper = LeaseKeeper(storage, "w", 15, on_lost=print)
    with requests() as seen:
        keeper.hold(stage)
        keeper.start(workflow)
        time.sleep(2 * SECONDS)
        keeper.close()
    found["keeper"] = {kind: number / 2 for kind, number in _rates(seen).items()}
    with requests() as seen:
        writer = MetricWriter(storage, f"{FOLDER}/attempts/1")
        for number in range(int(10 * SECONDS)):
            writer.log({"train/loss": 1.0}, number)
            time.sleep(0.1)
        writer.close()
    found["metrics"] = _rates(seen)
    with requests() as seen, LogShipper(storage, "logs/rank-0000"):
        for number in range(int(SECONDS)):
            print(f"line {number}")
            time.sleep(1)
    found["log"] = _rates(seen)
    return found


def _rates(seen: Counter[str]) -> dict[str, float]:
    return {kind: round(number / SECONDS, 2) for kind, number in seen.items()}


def curves(storage: Storage) -> dict[str, Any]:
    """A look at a stage's points for MLflow, which is taken every two seconds, by its number of attempts so far."""
    found = {}
    head = Head.acquire(storage, f"{FOLDER}-c", "bench", ttl=15)
    assert head is not None
    follower = Curves(storage, head.folder, has_updates=True)
    for attempt in range(1, 12):
        follower.follow(attempt)
        follower.collect()
        if attempt in (1, 11):
            with requests() as seen:
                follower.collect()
            found[f"curves_{attempt}"] = dict(seen)
    return found


def sizes(storage: Storage) -> dict[str, Any]:
    """Bytes of documents, by what they grow with."""
    file = File(address="shards/train-000123.tar", bytes=256 * 2**20, sha256="0" * 64)
    index = replace(file, address="index/train-000123.safetensors")
    shards = [Shard(tar=file, index=index, count=10_000)] * 10_000
    places, labels = [(1024 * n, 1000) for n in range(10_000)], [(n % 1000,) for n in range(10_000)]
    classes = [dict.fromkeys(range(1000), 10)] * 10
    events = EventLog(storage, "sizes")
    for number in range(10):
        events.append("attempt_started", "pretrain", folder=FOLDER, attempt=number, placement={"workers": 1024})
    document = HeadDocument(owner="bench", epoch=1, nonce="0" * 16, ttl_seconds=15, state="running")
    commits = {"prefix": f"{FOLDER}/checkpoints/00100000-a12", "update": 100_000}
    segment = {"attempt": 12, "start": 100_000, "end": 200_000}
    many = HeadDocument.model_validate({**document.model_dump(), "checkpoints": [commits] * 100})
    long = HeadDocument.model_validate({**document.model_dump(), "history": [segment] * 100})
    own = len(document.changed().body())
    points = [{"train/loss": 1.2345678}] * 100
    return {
        "table_bytes_per_shard": len(table_bytes(shards)) / len(shards),
        "index_bytes_per_sample": len(make_index(places, labels, multi_label=False).to_bytes()) / 10_000,
        "class_bytes_per_shard_and_class": len(class_counts_bytes(classes)) / 10_000,
        "event_bytes": mean(size for _, size in storage.sizes("workflows/sizes/events/")),
        "head_bytes": own,
        "head_bytes_per_checkpoint": (len(many.changed().body()) - own) / 100,
        "head_bytes_per_attempt": (len(long.changed().body()) - own) / 100,
        "point_bytes": _point_bytes(storage, points),
    }


def _point_bytes(storage: Storage, points: list[dict[str, float]]) -> float:
    writer = MetricWriter(storage, "points", interval=3600)
    for step, values in enumerate(points):
        writer.log(values, 100_000 + step)
    writer.close()
    return sum(size for _, size in storage.sizes("points/metrics/")) / len(points)


def listing(home: Path) -> dict[str, Any]:
    """Seconds for a new file of a cache of many: by listing the folder, and by the sum that is kept."""
    (folder := home / "many").mkdir()
    for number in range(20_000):
        (folder / f"{number:064x}.cached").touch()
    account, last = Account(folder, ".cached"), folder / f"{1:064x}.cached"
    account.add(last, 0, lambda used: 1)
    return {
        "list_seconds_20000": round(_least(account.list), 4),
        "add_seconds_20000": round(_least(lambda: account.add(last, 0, lambda used: 1)), 6),
    }


def _least(act: Callable[[], object]) -> float:
    """Seconds of the fastest of ten times."""
    found = []
    for _ in range(10):
        began = time.monotonic()
        act()
        found.append(time.monotonic() - began)
    return min(found)


def measure(home: Path) -> dict[str, Any]:
    """All constants by their names."""
    from tests.bench.loader_ours import s3
    from tests.bench.scale_watchdog import watchdog

    with s3(home / "server") as (storage, _):
        found = (
            fetching(storage, home) | checkpoints(storage, home) | watching(storage) | curves(storage) | sizes(storage)
        )
    found |= listing(home) | watchdog()
    return json.loads(json.dumps(found, default=float))
