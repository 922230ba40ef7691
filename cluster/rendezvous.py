"""How the processes of a gang find each other: the variables that torchrun sets, and a socket of rank 0.

Ray's own TorchConfig does that too, and imports torch in the driver and in its controller for it: nine seconds
of every gang's start on two cores, spent one after the other. Here the process group is left to the
function that needs one.
"""

from __future__ import annotations

import os
import socket
from typing import Any

from ray.train.backend import Backend, BackendConfig

from cluster.gang import LISTENING
from cluster.gang_failure import Ranks
from cluster.machine import interface_of
from cluster.signals import note_termination

BACKLOG = 4096
"""Ranks that may be waiting to be let in; the kernel has a limit of its own."""


class Rendezvous(BackendConfig):
    """Tells each worker where rank 0 listens, and notes which machines they are on."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks

    @property
    def backend_cls(self) -> type[Backend]:
        return _RendezvousBackend


class _RendezvousBackend(Backend):
    share_cuda_visible_devices = True
    """So that the local rank is the number of a worker's GPU."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        # This runs on the driver's machine, where the driver finds the note.
        backend_config.ranks.note(worker_group.execute(_node))
        address, port = worker_group.execute_single(0, _listen)
        worker_group.execute(_set, {"MASTER_ADDR": address, "MASTER_PORT": str(port)})
        worker_group.execute(_name_interface)
        # Here and not in the function that they run, which is in another thread.
        worker_group.execute(note_termination)


def own_variables(context: Any) -> dict[str, str]:
    """A worker's place, by the names that torchrun gives (`torch.distributed.elastic`)."""
    return {
        "RANK": str(context.get_world_rank()),
        "WORLD_SIZE": str(context.get_world_size()),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "NODE_RANK": str(context.get_node_rank()),
    }


def _node() -> str:
    from ray import get_runtime_context

    return get_runtime_context().get_node_id()


def _listen() -> tuple[str, int]:
    """Listen in rank 0's process, for the process group that is made there later; returns the address and the port.

    A port that was only looked for would be free for everybody until then, for the seconds that torch takes to load.
    """
    from ray.util import get_node_ip_address

    address = get_node_ip_address()
    listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("", 0))
    listener.listen(BACKLOG)
    port = listener.getsockname()[1]
    os.environ[LISTENING] = str(listener.detach())
    return address, port


def _name_interface() -> None:
    """Have gloo listen where Ray says that this machine is.

    By itself it listens where the machine's name leads, which for many is the loopback: then nobody else reaches it.
    """
    from ray.util import get_node_ip_address

    name = interface_of(get_node_ip_address())
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def _set(variables: dict[str, str]) -> None:
    os.environ.update(variables)
