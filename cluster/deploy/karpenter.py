"""Machines of EC2 that come when pods ask for them: what Karpenter, the device plugins and a first pod are given."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from cluster.deploy import names
from cluster.deploy.karpenter_shape import EFA
from cluster.deploy.names import Object
from cluster.errors import UserError

if TYPE_CHECKING:
    from cluster.deploy.karpenter_shape import Karpenter
    from cluster.deploy.shape import Nodes, Shape

GPU, MACHINE = "nvidia.com/gpu", "node.kubernetes.io/instance-type"
ZONE, CAPACITY = "topology.kubernetes.io/zone", "karpenter.sh/capacity-type"
RESERVATION = "karpenter.k8s.aws/capacity-reservation-type"
EMPTY_SECONDS = 120
"""A machine that no pod of work is on any more for so long is given back; Ray has waited `idle_minutes` before."""
LOCKED_MEMORY = """\
#!/bin/bash
# Before containerd is started. Containers have its limit of memory that may be locked, which Kubernetes cannot raise;
# EFA and InfiniBand lock what they send. IPC_LOCK would be no help: a process that is not root never has it.
mkdir -p /etc/systemd/system/containerd.service.d
printf '[Service]\\nLimitMEMLOCK=infinity\\n' >/etc/systemd/system/containerd.service.d/memlock.conf
systemctl daemon-reload
"""
TEST_IMAGE = "public.ecr.aws/amazonlinux/amazonlinux:2023"


def check(shape: Shape) -> Karpenter:
    """What the shape says of Karpenter. Raises UserError where it is nothing, or no machine would come of it."""
    karpenter, nodes, resources = shape.karpenter, shape.nodes, shape.network.resources
    if karpenter is None:
        raise UserError("karpenter: machines of EKS need to know their cluster: give it cluster and zone")
    if pages := [name for name in resources if name.startswith("hugepages-")]:
        raise UserError(
            f"network.resources: Karpenter knows of {pages[0]} on no machine, and would start none: leave it out"
        )
    if EFA in resources and karpenter.zone is None:
        raise UserError(f"karpenter.zone: {EFA} stays within an availability zone: name the GPUs', such as us-east-1a")
    if (asked := nodes.selector.get(MACHINE, karpenter.machine)) != karpenter.machine:
        raise UserError(
            f"nodes.selector asks for {asked}, and karpenter.machine is {karpenter.machine}: name the same in both"
        )
    if not nodes.tolerations:
        raise UserError(
            "nodes.tolerations: with none the machines have no taint, and anybody's pods bring some with GPUs: give "
            "{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}"
        )
    if nodes.spot and karpenter.reservation:
        raise UserError("nodes.spot=true and karpenter.reservation: reserved machines are not spot: leave one out")
    return karpenter


def machines(shape: Shape) -> list[Object]:
    """A class and a pool of machines with GPUs, and of those for ingestion."""
    karpenter = check(shape)
    gpu: Object = {"instanceStorePolicy": "RAID0", "userData": LOCKED_MEMORY}
    if karpenter.placement_group:
        gpu["placementGroupSelector"] = {"name": karpenter.placement_group}
    if karpenter.reservation:
        gpu["capacityReservationSelectorTerms"] = [{"id": karpenter.reservation}]
    found = [_class(shape, karpenter, "gpu", gpu), _gpu_pool(shape, karpenter)]
    if shape.ingest is not None:
        wanted = {MACHINE: karpenter.ingest_machine, CAPACITY: _capacity(shape.ingest)}
        found += [_class(shape, karpenter, "ingest", {}), _pool(shape, "ingest", shape.ingest, wanted)]
    return found


def security_group(shape: Shape) -> list[str]:
    """Lines of shell that make the group whose members EFA lets speak to each other; none without EFA."""
    karpenter, name = check(shape), _group(shape)
    if EFA not in shape.network.resources:
        return []
    cluster = shlex.join(["aws", "eks", "describe-cluster", "--name", karpenter.cluster])
    described = f"--group-name {name} --description {shlex.quote(f'{name}: EFA between machines')}"
    return [
        f"vpc=$({cluster} --query cluster.resourcesVpcConfig.vpcId --output text)",
        f'group() {{ aws ec2 describe-security-groups --query "SecurityGroups[0].$1" --output text \\\n'
        f'  --filters "Name=vpc-id,Values=$vpc" Name=group-name,Values={name}; }}',
        f'test "$(group GroupId)" != None || aws ec2 create-security-group {described} --vpc-id "$vpc"',
        "id=$(group GroupId)",
        *_to_itself("ingress", "IpPermissions"),
        # EFA asks for this one too: a rule that lets everything out is not enough.
        *_to_itself("egress", "IpPermissionsEgress"),
    ]


def device_plugins() -> Object:
    """Values for the charts of both device plugins, which have to run beside the machines' taints."""
    return {"tolerations": [{"operator": "Exists"}]}


def test_pod(shape: Shape) -> Object:
    """A pod that brings one machine with GPUs, and says what it has: GPUs, EFA, memory to lock, the pods' disk."""
    check(shape)
    nodes, devices = shape.nodes, {GPU: shape.gpus.per_node, **shape.network.resources}
    look = ["nvidia-smi --list-gpus", *(["ls /dev/infiniband"] if EFA in devices else []), "ulimit -l", "df -h /"]
    container = {
        "name": "look",
        "image": TEST_IMAGE,
        "command": ["bash", "-ec", "; ".join(look)],
        # NVIDIA's runtime brings its programs along where they are asked for.
        "env": [{"name": "NVIDIA_DRIVER_CAPABILITIES", "value": "compute,utility"}],
        "resources": {"requests": dict(devices), "limits": dict(devices)},
        "securityContext": {"runAsUser": 1000},
    }
    spec = {
        "restartPolicy": "Never",
        "nodeSelector": {**nodes.selector, MACHINE: check(shape).machine},
        "tolerations": [item.model_dump(exclude_none=True) for item in nodes.tolerations],
        "containers": [container],
    }
    metadata = {"name": names.named(shape, "look"), "namespace": "default"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _group(shape: Shape) -> str:
    return f"{shape.name}-efa"


def _to_itself(direction: str, rules: str) -> list[str]:
    add = f'aws ec2 authorize-security-group-{direction} --group-id "$id" --protocol=-1 --source-group "$id"'
    return [f'group "{rules}[].UserIdGroupPairs[].GroupId" | grep -q "$id" || {add}']


def _class(shape: Shape, karpenter: Karpenter, part: str, more: Object) -> Object:
    efa = part == "gpu" and EFA in shape.network.resources
    disk = {"volumeSize": f"{karpenter.disk_gb}Gi", "volumeType": "gp3", "encrypted": True}
    spec = {
        "role": karpenter.node_role,
        "amiSelectorTerms": [{"alias": karpenter.image}],
        "subnetSelectorTerms": [{"id": found} for found in karpenter.subnets]
        or [{"tags": {"karpenter.sh/discovery": karpenter.cluster}}],
        # EKS gives this tag to the group that it makes for the cluster.
        "securityGroupSelectorTerms": [
            {"tags": {"aws:eks:cluster-name": karpenter.cluster}},
            *([{"name": _group(shape)}] if efa else []),
        ],
        "blockDeviceMappings": [{"deviceName": "/dev/xvda", "rootVolume": True, "ebs": disk}],
        **more,
    }
    metadata = {"name": names.named(shape, part), "labels": names.labels(shape, part)}
    return {"apiVersion": "karpenter.k8s.aws/v1", "kind": "EC2NodeClass", "metadata": metadata, "spec": spec}


def _gpu_pool(shape: Shape, karpenter: Karpenter) -> Object:
    nodes, wanted = shape.nodes, {MACHINE: karpenter.machine, CAPACITY: _capacity(shape.nodes)}
    if karpenter.reservation:
        wanted[CAPACITY] = "reserved"
    if karpenter.capacity_block:
        wanted[RESERVATION] = "capacity-block"
    if karpenter.zone:
        wanted[ZONE] = karpenter.zone
    pool = _pool(shape, "gpu", nodes, wanted)
    # By this label NVIDIA's device plugin knows the machines.
    pool["spec"]["template"]["metadata"] = {"labels": {"nvidia.com/gpu.present": "true"}}
    taints = [item.model_dump(include={"key", "value", "effect"}, exclude_none=True) for item in nodes.tolerations]
    pool["spec"]["template"]["spec"]["taints"] = taints
    pool["spec"]["limits"] = {GPU: str(shape.most_gpus)}
    return pool


def _capacity(nodes: Nodes) -> str:
    return "spot" if nodes.spot else "on-demand"


def _pool(shape: Shape, part: str, nodes: Nodes, wanted: dict[str, str]) -> Object:
    needed = {**nodes.selector, **wanted, "kubernetes.io/arch": "amd64"}
    reference = {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": names.named(shape, part)}
    template = {
        "spec": {
            "nodeClassRef": reference,
            "requirements": [{"key": key, "operator": "In", "values": [needed[key]]} for key in sorted(needed)],
            # A machine is not ended for its age: training would end with it.
            "expireAfter": "Never",
        },
    }
    disruption = {"consolidationPolicy": "WhenEmpty", "consolidateAfter": f"{EMPTY_SECONDS}s"}
    metadata = {"name": names.named(shape, part), "labels": names.labels(shape, part)}
    spec: Object = {"template": template, "disruption": disruption}
    return {"apiVersion": "karpenter.sh/v1", "kind": "NodePool", "metadata": metadata, "spec": spec}
