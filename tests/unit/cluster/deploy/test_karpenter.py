"""Machines that come by Karpenter: what they have to be, and the network between them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.deploy import kuberay
from cluster.deploy.rendering import render, write
from cluster.deploy.shape import Shape
from cluster.errors import UserError
from tests.unit.cluster.deploy.shapes import all_shapes, made_from, shipped

TAINT = [{"key": "nvidia.com/gpu"}]
EFA = {"resources": {"vpc.amazonaws.com/efa": 32}}


def specs(shape: Shape) -> dict[tuple[str, str], dict[str, Any]]:
    """Specification of each object by its kind and name."""
    found = yaml.safe_load_all(render(shape, ["karpenter"])["karpenter/machines.yaml"])
    return {(one["kind"], one["metadata"]["name"]): one["spec"] for one in found}


def requirements(pool: dict[str, Any]) -> dict[str, list[str]]:
    found = pool["template"]["spec"]["requirements"]
    assert all(one["operator"] == "In" for one in found)
    return {one["key"]: one["values"] for one in found}


def test_pods_of_each_group_bring_machines_of_their_kind():
    """By what Kubernetes and Karpenter hold a pod against: labels, taints, and how many GPUs there may be."""
    found, groups = specs(shipped()), kuberay.cluster_spec(shipped())["workerGroupSpecs"]
    gpu, ingest = found["NodePool", "vit-gpu"], found["NodePool", "vit-ingest"]
    assert requirements(gpu)["node.kubernetes.io/instance-type"] == ["p5.48xlarge"]
    assert requirements(gpu)["topology.kubernetes.io/zone"] == ["us-east-1a"]
    assert requirements(ingest)["node.kubernetes.io/instance-type"] == ["m7i.8xlarge"]
    pod = groups[0]["template"]["spec"]
    for key, value in pod["nodeSelector"].items():
        assert requirements(gpu)[key] == [value]
    tolerated = {(item["key"], item["effect"]) for item in pod["tolerations"]}
    taints = {(item["key"], item["effect"]) for item in gpu["template"]["spec"]["taints"]}
    assert taints
    assert taints <= tolerated
    # Without a taint the pods for ingestion, and anybody's, would bring machines with GPUs.
    assert "taints" not in ingest["template"]["spec"]
    asked = pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] * groups[0]["maxReplicas"]
    assert gpu["limits"] == {"nvidia.com/gpu": str(asked)}
    for pool in (gpu, ingest):
        name = pool["template"]["spec"]["nodeClassRef"]["name"]
        assert ("EC2NodeClass", name) in found


def test_machines_that_train_are_not_ended_for_their_age_or_for_fewer_ones():
    for pool in (specs(shipped())["NodePool", name] for name in ("vit-gpu", "vit-ingest")):
        assert pool["template"]["spec"]["expireAfter"] == "Never"
        assert pool["disruption"]["consolidationPolicy"] == "WhenEmpty"


def test_a_machine_with_gpus_has_its_disks_the_plugins_label_and_memory_to_lock():
    found = specs(shipped())
    gpu = found["EC2NodeClass", "vit-gpu"]
    assert gpu["instanceStorePolicy"] == "RAID0"
    assert "instanceStorePolicy" not in found["EC2NodeClass", "vit-ingest"]
    assert found["NodePool", "vit-gpu"]["template"]["metadata"]["labels"] == {"nvidia.com/gpu.present": "true"}
    assert gpu["role"] == "KarpenterNodeRole-lab"


def test_containers_may_lock_all_memory(tmp_path: Path):
    """What the machine runs before containerd, in a folder of the test's."""
    script = specs(shipped())["EC2NodeClass", "vit-gpu"]["userData"].replace("/etc/", f"{tmp_path}/etc/")
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "systemctl").write_text(f'#!/bin/sh\necho "$*" >{tmp_path}/told\n')
    (programs / "systemctl").chmod(0o755)
    subprocess.run(["bash", "-ec", script], env={"PATH": f"{programs}:{os.environ['PATH']}"}, check=True)
    (unit,) = (tmp_path / "etc/systemd/system/containerd.service.d").iterdir()
    assert unit.read_text() == "[Service]\nLimitMEMLOCK=infinity\n"
    assert (tmp_path / "told").read_text() == "daemon-reload\n"


def test_efas_group_is_that_of_the_script():
    gpu = specs(shipped())["EC2NodeClass", "vit-gpu"]["securityGroupSelectorTerms"]
    assert gpu == [{"tags": {"aws:eks:cluster-name": "lab"}}, {"name": "vit-efa"}]
    assert "--group-name vit-efa " in render(shipped(), ["karpenter"])["karpenter/security-group.sh"]
    reserved = all_shapes()["reserved"]
    assert "karpenter/security-group.sh" not in render(reserved, ["karpenter"])
    assert len(specs(reserved)["EC2NodeClass", "small-gpu"]["securityGroupSelectorTerms"]) == 1


def test_reserved_machines_alone():
    found = specs(all_shapes()["reserved"])
    assert set(found) == {("EC2NodeClass", "small-gpu"), ("NodePool", "small-gpu")}
    wanted = requirements(found["NodePool", "small-gpu"])
    assert wanted["karpenter.sh/capacity-type"] == ["reserved"]
    assert wanted["karpenter.k8s.aws/capacity-reservation-type"] == ["capacity-block"]
    assert wanted["example.com/rack"] == ["7"]
    kind = found["EC2NodeClass", "small-gpu"]
    assert kind["capacityReservationSelectorTerms"] == [{"id": "cr-0123456789abcdef0"}]
    assert kind["placementGroupSelector"] == {"name": "small"}
    assert kind["subnetSelectorTerms"] == [{"id": "subnet-0123"}]
    assert kind["role"] == "machines"


def test_spot_machines():
    nodes = {**shipped().nodes.model_dump(), "spot": True}
    found = specs(made_from({"karpenter": {"cluster": "lab"}, "nodes": nodes}))
    assert requirements(found["NodePool", "small-gpu"])["karpenter.sh/capacity-type"] == ["spot"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"karpenter": None}, "karpenter: machines of EKS need to know their cluster"),
        ({"network": {"resources": {"hugepages-2Mi": "5Gi"}}}, "Karpenter knows of hugepages-2Mi on no machine"),
        ({"network": EFA}, "karpenter.zone: vpc.amazonaws.com/efa stays within an availability zone"),
        (
            {"nodes": {"selector": {"node.kubernetes.io/instance-type": "p4d.24xlarge"}}},
            "nodes.selector asks for p4d.24xlarge, and karpenter.machine is p5.48xlarge",
        ),
        ({"nodes": {"tolerations": []}}, "nodes.tolerations: with none the machines have no taint"),
        (
            {"nodes": {"spot": True}, "karpenter": {"cluster": "lab", "reservation": "cr-1"}},
            "reserved machines are not spot: leave one out",
        ),
    ],
)
def test_what_would_bring_no_machine_or_the_wrong_one_is_refused(changes: dict[str, Any], words: str):
    nodes = {"cpus": 4, "memory_gb": 64, "tolerations": TAINT, **changes.get("nodes", {})}
    shape = made_from({"karpenter": {"cluster": "lab"}, **changes, "nodes": nodes})
    with pytest.raises(UserError, match=words):
        render(shape, ["karpenter"])


AWS = """#!/bin/sh
case "$*" in
  "eks describe-cluster --name lab --query cluster.resourcesVpcConfig.vpcId "*) echo vpc-1 ;;
  *describe-security-groups*"[0].GroupId "*) cat group 2>/dev/null || echo None ;;
  *describe-security-groups*IpPermissions[*) cat ingress 2>/dev/null || echo None ;;
  *describe-security-groups*IpPermissionsEgress*) cat egress 2>/dev/null || echo None ;;
  "ec2 create-security-group --group-name vit-efa "*" --vpc-id vpc-1") echo sg-1 >group ;;
  "ec2 authorize-security-group-"*" --group-id sg-1 --protocol=-1 --source-group sg-1")
    rule=${2#authorize-security-group-}; test ! -e "$rule" || exit 254; echo sg-1 >"$rule" ;;
  *) echo "unexpected: $*" >&2; exit 1 ;;
esac
"""
"""Remembers a group and its rules in files, and refuses a rule that is there, as AWS does."""


@pytest.mark.parametrize("there", [(), ("group",), ("group", "ingress")])
def test_the_group_lets_its_members_speak_to_each_other_also_after_a_half_made_start(tmp_path: Path, there):
    write(render(shipped(), ["karpenter"]), tmp_path)
    folder = tmp_path / "karpenter"
    for name in there:
        (folder / name).write_text("sg-1\n")
    (folder / "aws").write_text(AWS)
    (folder / "aws").chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    for _ in range(2):
        subprocess.run([str(folder / "security-group.sh")], env=environment, check=True)
    assert all((folder / name).read_text() == "sg-1\n" for name in ("group", "ingress", "egress"))


def test_a_pod_to_look_asks_for_what_training_asks_for():
    pod = yaml.safe_load(render(shipped(), ["karpenter"])["karpenter/look.yaml"])["spec"]
    ray = kuberay.cluster_spec(shipped())["workerGroupSpecs"][0]["template"]["spec"]
    asked, (look,) = ray["containers"][0]["resources"]["limits"], pod["containers"]
    assert look["resources"]["limits"] == {name: asked[name] for name in asked if name not in ("cpu", "memory")}
    assert look["resources"]["limits"]["vpc.amazonaws.com/efa"] == 32
    assert pod["tolerations"] == ray["tolerations"]
    for words in ("nvidia-smi", "/dev/infiniband", "ulimit -l"):
        assert words in look["command"][-1]
