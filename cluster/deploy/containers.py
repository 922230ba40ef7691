"""The containers of `ray up`: what Docker is told of them, for each kind of machine, and what they find in files."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING

from cluster.deploy import environment, names
from cluster.deploy.names import Object

if TYPE_CHECKING:
    from cluster.deploy.aws_shape import Aws
    from cluster.deploy.shape import Nodes, Shape

HOME = "/home/patchline"
"""Of our images' user; see `docker/`."""
OWN_FOLDER = f"{HOME}/.ray"
"""What the machine that gives `ray up` has in `aws.token_folder`, on every machine."""
TOKEN, VARIABLES = f"{OWN_FOLDER}/auth_token", f"{OWN_FOLDER}/environment"
MLFLOW = f"http://127.0.0.1:{names.MLFLOW_PORT}"
"""Of the server on the head, where drivers are too, who alone talk to it."""
DISKS = "/opt/dlami/nvme"
"""Where AWS's images for deep learning put a machine's own fast disks together."""
AS_TOKEN = f'export RAY_AUTH_TOKEN="$(cat {TOKEN})"'
"""The token goes by Ray's own processes: a submitted job's environment may name a file of the submitter's machine."""


def docker(shape: Shape) -> Object:
    """What holds for all containers, and what for the head's."""
    on_head = _options(_variables(shape, head=True))
    return {
        "image": shape.image,
        "container_name": "patchline",
        "pull_before_run": True,
        # Ray would give /dev/shm what it wants itself.
        "disable_shm_size_detection": True,
        "run_options": ["--ulimit=memlock=-1:-1", "--ulimit=nofile=65536:65536"],
        "head_run_options": [_shared_memory(shape.head.memory_gb / 4), *on_head],
    }


def docker_of_workers(shape: Shape, aws: Aws, nodes: Nodes, *, gpus: int) -> Object:
    """What is told of machines of one kind. Ray has it beside what holds for all."""
    rdma = bool(gpus and (aws.efa or shape.network.infiniband))
    options = [
        _shared_memory(nodes.shared_memory_gb),
        f"--volume={DISKS}:{shape.cache.mount}",
        # Docker starts no container with a device that is not there: machines without GPUs have none.
        *(["--device=/dev/infiniband", "--cap-add=IPC_LOCK"] if rdma else []),
        *_options(_variables(shape, communicates=bool(gpus))),
    ]
    return {"worker_run_options": options}


def own_variables(shape: Shape) -> str:
    """A line of shell by which what follows has the shape's `secrets`, or stops and says which is not there."""
    if not shape.secrets:
        return ""
    told = "has no line in the file environment, in the folder aws.token_folder of the machine that gives ray up"
    wanted = [f': "${{{name}:?{told}}}"' for name in sorted(shape.secrets)]
    return f"set -a; test ! -e {VARIABLES} || . {VARIABLES}; set +a; {'; '.join(wanted)}; "


def _shared_memory(size_gb: float) -> str:
    return f"--shm-size={int(size_gb * 10**9)}b"


def _variables(shape: Shape, *, head: bool = False, communicates: bool = False) -> dict[str, str]:
    found = {**environment.storage(shape), **environment.ray(shape)}
    if head:
        # Where it is no mount it is a folder of the container's.
        found |= {"TMPDIR": "/tmp", "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{names.JOBS_PORT}"}
        return found | environment.places(shape, shape.mlflow.address or MLFLOW)
    return found | (environment.communication(shape) if communicates else {})


def _options(values: Mapping[str, str]) -> list[str]:
    return [f"--env={shlex.quote(f'{name}={values[name]}')}" for name in sorted(values)]
