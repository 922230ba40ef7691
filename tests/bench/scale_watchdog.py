"""What a rank's look at all others costs the process that keeps what they say, by the number of ranks."""

from __future__ import annotations

import json
import multiprocessing
import time
from datetime import timedelta

from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

RANKS = (64, 1024)
LOOKS = 50
SAID = {"beats": 12345, "moves": 12345, "patient_beats": 12, "place": "update 12345 waits for images"}


def watchdog() -> dict[str, float]:
    """Milliseconds of the keeper's processor, and bytes, for each look."""
    found: dict[str, float] = {}
    body = json.dumps(SAID).encode()
    for ranks in RANKS:
        store = TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=30), wait_for_workers=False)
        for rank in range(ranks):
            store.set(f"patchline/{rank}", body)
        process = multiprocessing.get_context("spawn").Process(target=_look, args=(store.port, ranks, body))
        began = time.process_time()
        process.start()
        process.join()
        found[f"watchdog_ms_{ranks}"] = round((time.process_time() - began) * 1000 / LOOKS, 3)
        found[f"watchdog_bytes_{ranks}"] = ranks * len(body)
    return found


def _look(port: int, ranks: int, body: bytes) -> None:
    store = TCPStore("127.0.0.1", port, None, False, timedelta(seconds=30))
    keys = [f"patchline/{rank}" for rank in range(ranks)]
    for _ in range(LOOKS):
        store.set("patchline/0", body)
        assert store.check(keys)
        [json.loads(said) for said in store.multi_get(keys)]
