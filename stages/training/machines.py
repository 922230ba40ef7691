"""How busy the machines of a gang are, as metrics of the attempt: one rank of each tells rank 0, which logs it.

So storage is asked for nothing more, however many machines there are.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence

from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]

from cluster.system_metrics import SystemMetrics

SECONDS = 10.0
"""Between two samples of a machine, as with MLflow's own."""
FIRST_SECONDS = 2.0
"""Until the first one: short runs have one too."""
MACHINES = 8
"""Of so many a tracking server is told so often; of more less often, so that it has no more to take."""


class Machines:
    """Samples this machine, where this is its first rank, and logs what all say, where this is rank 0.

    `hosts` are the ranks' machines; `store` is what ranks tell each other by, None for a single one. A point is called
    `system/<machine>/<name>`. A context manager, whose thread costs training nothing.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        rank: int,
        store: Store | None,
        log: Callable[[Mapping[str, float]], None] | None,
        seconds: float = SECONDS,
    ) -> None:
        self._firsts = {host: hosts.index(host) for host in hosts}
        self._store, self._log, self._seconds = store, log, seconds * max(1.0, len(self._firsts) / MACHINES)
        self._rank, self._host = rank, hosts[rank]
        self._heard: dict[int, bytes] = {}
        self._closed = threading.Event()

    def __enter__(self) -> Machines:
        if self._rank in self._firsts.values():
            threading.Thread(target=self._run, name="system-metrics", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        # Never waits for the thread, which may be waiting for a rank that has left already.
        self._closed.set()

    def _run(self) -> None:
        metrics, pause = SystemMetrics(), min(FIRST_SECONDS, self._seconds)
        while not self._closed.wait(pause):
            pause = self._seconds
            try:
                self._say(metrics.sample())
            except Exception as error:
                # Whatever a driver or a lost rank did: nobody's training ends for a figure of this kind.
                if not self._closed.is_set():
                    print(f"how busy {self._host} is cannot be told: {error}", flush=True)

    def _say(self, own: Mapping[str, float]) -> None:
        if self._log is not None:
            self._log({f"system/{self._host}/{name}": value for name, value in own.items()})
            for host, values in self._others():
                self._log({f"system/{host}/{name}": value for name, value in values.items()})
        elif self._store is not None:
            self._store.set(_key(self._rank), json.dumps(own))

    def _others(self) -> list[tuple[str, dict[str, float]]]:
        """What other machines have said since they were last looked at."""
        found = []
        for host, rank in self._firsts.items():
            if self._store is None or rank == self._rank or not self._store.check([_key(rank)]):
                continue
            said = self._store.get(_key(rank))
            if said != self._heard.get(rank):
                self._heard[rank] = said
                found.append((host, json.loads(said)))
        return found


def _key(rank: int) -> str:
    return f"patchline/machine/{rank}"
