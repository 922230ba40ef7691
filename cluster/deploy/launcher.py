"""A cluster of machines of AWS, as Ray's own launcher starts it: the file for `ray up`."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from cluster.deploy import mlflow, names
from cluster.deploy.containers import AS_TOKEN, DISKS, HOME, OWN_FOLDER, TOKEN, docker, docker_of_workers, own_variables
from cluster.deploy.names import Object
from cluster.deploy.registry import repository
from cluster.errors import UserError

if TYPE_CHECKING:
    from cluster.deploy.aws_shape import Aws
    from cluster.deploy.shape import Nodes, Shape

STORE = "$(( $(stat --file-system --format='%b * %S' /dev/shm) / 2 ))"
"""Bytes of Ray's object store, in shell: half of /dev/shm, as on Kubernetes. Ray has one line for all its machines."""


def launcher(shape: Shape) -> Object:
    """What `ray up` reads. Raises UserError where the shape says nothing of AWS."""
    if shape.aws is None:
        raise UserError("aws: `ray up` has to know machines and their image: give it zone, image_id and profile")
    aws = shape.aws
    types = {"head": _head_type(aws), "gpu": _node_type(shape, aws, shape.nodes, aws.machine, shape.gpus.per_node)}
    if shape.ingest is not None:
        types["ingest"] = _node_type(shape, aws, shape.ingest, aws.ingest_machine, 0)
    return {
        "cluster_name": shape.name,
        "max_workers": sum(kind.get("max_workers", 0) for kind in types.values()),
        "idle_timeout_minutes": shape.nodes.idle_minutes,
        "provider": {
            "type": "aws",
            "region": shape.region,
            "availability_zone": aws.zone,
            # Stopped machines would hold on to their disks, and to no GPUs.
            "cache_stopped_nodes": False,
            "use_internal_ips": aws.internal,
        },
        "auth": {"ssh_user": aws.ssh_user},
        "docker": docker(shape),
        "file_mounts": {OWN_FOLDER: aws.token_folder},
        "head_node_type": "head",
        "available_node_types": types,
        # Before the image is pulled.
        "initialization_commands": [
            f"sudo mkdir -p {DISKS} && sudo chown 1000:1000 {DISKS}",
            *([found.login()] if (found := repository(shape.image)) else []),
        ],
        "setup_commands": [f"chmod 600 {OWN_FOLDER}/*"],
        "head_start_ray_commands": _head_commands(shape),
        "worker_start_ray_commands": _worker_commands(shape),
    }


def _worker_commands(shape: Shape) -> list[str]:
    start = f"ray start --address=$RAY_HEAD_IP:{names.GCS_PORT} --object-store-memory={STORE} --disable-usage-stats"
    commands = ["ray stop", f"{own_variables(shape)}{AS_TOKEN}; ulimit -n 65536; {start}"]
    if shape.nodes.spot or (shape.ingest is not None and shape.ingest.spot):
        watch = f"python -m cluster.deploy.spot_notice --notice {shape.nodes.notice_s}"
        commands.append(f"{AS_TOKEN}; {_kept('spot-notice', watch)}")
    return commands


def _head_commands(shape: Shape) -> list[str]:
    """Ray, MLflow where there is no other, and the supervisor, which starts again whenever it ends."""
    start = [
        *("ray", "start", "--head", f"--port={names.GCS_PORT}", "--dashboard-host=127.0.0.1"),
        *("--num-cpus=0", "--num-gpus=0", "--disable-usage-stats", "--autoscaling-config=~/ray_bootstrap_config.yaml"),
    ]
    own = own_variables(shape)
    commands = ["ray stop", f"{own}{AS_TOKEN}; ulimit -n 65536; {' '.join(start)}"]
    if shape.mlflow.address is None:
        server = shlex.join(mlflow.command(shape.artifacts, host="127.0.0.1", workers=2))
        commands.append(_kept("mlflow", f"MLFLOW_BACKEND_STORE_URI=sqlite:///{HOME}/mlflow.db {server}"))
    commands.append(own + _kept("supervise", f"RAY_AUTH_TOKEN_PATH={TOKEN} patchline supervise --json"))
    return commands


def _kept(name: str, command: str) -> str:
    """A command that is started again ten seconds after it has ended, apart from the shell that starts it.

    `ray up` gives these lines again on a cluster that is up; where the loop still runs, the second one ends.
    """
    loop = f"while true; do {command}; sleep 10; done"
    once = f"flock --nonblock /tmp/{name}.lock sh -c {shlex.quote(loop)}"
    return f"nohup setsid {once} >>{HOME}/{name}.log 2>&1 </dev/null &"


def _head_type(aws: Aws) -> Object:
    config = {**_machine(aws, aws.head_machine, aws.head_profile), **_network(aws, 0)}
    return {"resources": {"CPU": 0, "GPU": 0}, "node_config": config}


def _node_type(shape: Shape, aws: Aws, nodes: Nodes, machine: str, gpus: int) -> Object:
    config = {**_machine(aws, machine, aws.profile), **_network(aws, aws.efa if gpus else 0)}
    if nodes.spot:
        config["InstanceMarketOptions"] = {"MarketType": "spot"}
    if gpus and aws.placement_group:
        config["Placement"] = {"GroupName": aws.placement_group}
    if gpus and aws.reservation:
        target = {"CapacityReservationId": aws.reservation}
        config["CapacityReservationSpecification"] = {"CapacityReservationTarget": target}
        if aws.capacity_block:
            config["InstanceMarketOptions"] = {"MarketType": "capacity-block"}
    return {
        "min_workers": nodes.min,
        "max_workers": nodes.max,
        "resources": {"CPU": nodes.cpus, "memory": int(nodes.memory_gb * 10**9), **({"GPU": gpus} if gpus else {})},
        "docker": docker_of_workers(shape, aws, nodes, gpus=gpus),
        "node_config": config,
    }


def _machine(aws: Aws, machine: str, profile: str) -> Object:
    disk = {"VolumeSize": aws.disk_gb, "VolumeType": "gp3", "DeleteOnTermination": True}
    return {
        "InstanceType": machine,
        "ImageId": aws.image_id,
        "IamInstanceProfile": {"Arn": profile},
        "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": disk}],
        # A container is one step further away from the machine's role than the default allows.
        "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 2},
    }


def _network(aws: Aws, efa: int) -> Object:
    """Subnet and security groups; with EFA an interface for each card, the first one also for everything else."""
    if not efa:
        found: Object = {"SubnetIds": [aws.subnet]} if aws.subnet else {}
        return found | ({"SecurityGroupIds": list(aws.security_groups)} if aws.security_groups else {})
    return {"NetworkInterfaces": [_interface(aws, card) for card in range(efa)]}


def _interface(aws: Aws, card: int) -> Object:
    return {
        "NetworkCardIndex": card,
        "DeviceIndex": 1 if card else 0,
        "InterfaceType": "efa-only" if card else "efa",
        "SubnetId": aws.subnet,
        "Groups": list(aws.security_groups),
    }
