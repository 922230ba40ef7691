"""Ingestion that is killed at any moment, by a signal that nothing can catch."""

import random
import signal
import subprocess
import sys
import time

from cluster.storage import open_storage
from tests.unit.stages.ingest.pictures import NAMES, digit, jpeg

KILLS = 6
PROCESS = """
import sys
from stages.context import Context
from cluster.storage import open_storage
from stages.ingest.config import IngestConfig
from stages.ingest.run import run

root, photos, attempt = sys.argv[1:]
config = IngestConfig.model_validate({
    "source": {"kind": "folder", "path": photos}, "samples_per_shard": 6, "destination": f"{root}/tars",
})
context = Context(
    storage=open_storage(f"{root}/results"), folder="stages/ingest/x", attempt=int(attempt), seed=0,
    tasks=lambda function, items, label: map(function, items), gang=None,
)
print("ready", flush=True)
run(config, {}, context)
"""


def start(root, photos, attempt):
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS, root, str(photos), str(attempt)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def contents(root):
    """Everything but what attempts have of their own; parts have the tars' addresses."""
    storage = open_storage(root)
    kept = [key for key in storage.list("") if "/attempts/" not in key and ".patchline/" not in key]
    return {key: storage.read(key).replace(root.encode(), b"root") for key in kept}


def test_killed_again_and_again_ingestion_ends_with_the_bytes_of_an_undisturbed_run(tmp_path):
    photos, pause = tmp_path / "photos", random.Random(0)
    for number in range(400):
        path = photos / NAMES[digit(number)] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    undisturbed, disturbed = f"file://{tmp_path}/a", f"file://{tmp_path}/b"
    process, began = start(undisturbed, photos, 1), time.monotonic()
    assert process.wait() == 0
    whole_run = time.monotonic() - began
    storage, tags = open_storage(disturbed), {}
    for attempt in range(1, KILLS + 1):
        process = start(disturbed, photos, attempt)
        # Parts that are there are skipped, so that each attempt comes further than the one before.
        time.sleep(pause.uniform(0, whole_run / KILLS))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        for key in storage.list("results/stages/ingest/x/parts/"):
            tar = f"tars/{key.rpartition('/')[2].removesuffix('.json')}.tar"
            now = (storage.stat(key), storage.stat(tar))
            assert tags.setdefault(tar, now) == now
    assert tags, "no part was finished before a kill"
    assert start(disturbed, photos, KILLS + 1).wait() == 0
    assert contents(disturbed) == contents(undisturbed)
    assert {tar: storage.stat(tar) for tar in tags} == {tar: tag for tar, (_, tag) in tags.items()}
