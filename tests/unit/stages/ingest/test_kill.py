"""Ingestion that is killed at any moment, by a signal that nothing can catch."""

import random
import signal
import subprocess
import sys

from cluster.storage import open_storage
from tests.unit.stages.ingest.pictures import NAMES, digit, jpeg

KILLS = 6
PROCESS = """
import os, signal, sys
from pathlib import Path
from stages.context import Context
from cluster.storage import open_storage
from stages.ingest.config import IngestConfig
from stages.ingest.run import run

root, photos, attempt, last = *sys.argv[1:4], int(sys.argv[4])
config = IngestConfig.model_validate({
    "source": {"kind": "folder", "path": photos}, "samples_per_shard": 6, "destination": f"{root}/tars",
})
context = Context(
    storage=open_storage(f"{root}/results"), folder="stages/ingest/x", attempt=int(attempt), seed=0,
    tasks=lambda function, items, label: map(function, items), gang=None,
)
touched, ours = 0, str(Path(photos).parent)

def touch(event, arguments):
    # A file is about to be opened, renamed, removed: what is written in between lies half done.
    global touched
    if any(isinstance(each, (str, os.PathLike)) and os.fspath(each).startswith(ours) for each in arguments):
        touched += 1
        if touched == last:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(touch)
run(config, {}, context)
print(touched)
"""


def attempted(root, photos, attempt, last=0):
    """The exit code of an attempt, and how often it touched a file; before the `last` time it kills itself."""
    command = [sys.executable, "-c", PROCESS, root, str(photos), str(attempt), str(last)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    return done.returncode, int(done.stdout or 0)


def contents(root):
    """Everything but what attempts have of their own; parts have the tars' addresses."""
    storage = open_storage(root)
    kept = [key for key in storage.list("") if "/attempts/" not in key and ".patchline/" not in key]
    return {key: storage.read(key).replace(root.encode(), b"root") for key in kept}


def test_killed_again_and_again_ingestion_ends_with_the_bytes_of_an_undisturbed_run(tmp_path):
    photos, moment = tmp_path / "photos", random.Random(0)
    for number in range(400):
        path = photos / NAMES[digit(number)] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    undisturbed, disturbed = f"file://{tmp_path}/a", f"file://{tmp_path}/b"
    code, whole_run = attempted(undisturbed, photos, 1)
    assert code == 0
    assert whole_run > 800, "each photo and each shard is touched"
    storage, tags = open_storage(disturbed), {}
    for attempt in range(1, KILLS + 1):
        # Parts that are there are skipped, so that each attempt comes further than the one before.
        code, _ = attempted(disturbed, photos, attempt, moment.randint(1, whole_run // KILLS))
        assert code == -signal.SIGKILL
        for key in storage.list("results/stages/ingest/x/parts/"):
            tar = f"tars/{key.rpartition('/')[2].removesuffix('.json')}.tar"
            now = (storage.stat(key), storage.stat(tar))
            assert tags.setdefault(tar, now) == now
    assert tags, "no part was finished before a kill"
    assert attempted(disturbed, photos, KILLS + 1)[0] == 0
    assert contents(disturbed) == contents(undisturbed)
    assert {tar: storage.stat(tar) for tar in tags} == {tar: tag for tar, (_, tag) in tags.items()}
