"""What the files of a cluster have to have, beside being files of their kind."""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.deploy import kuberay
from cluster.deploy.names import jobs_address
from cluster.deploy.rendering import PARTS, job, render, write
from cluster.deploy.shape import Shape
from cluster.errors import UserError
from tests.unit.cluster.deploy.shapes import all_shapes, made_from, shipped

ROOT = Path(__file__).parents[4]


def objects(files: dict[str, str]) -> list[dict[str, Any]]:
    """All documents of the manifests."""
    return [found for name, text in files.items() if name.endswith(".yaml") for found in yaml.safe_load_all(text)]


def containers(found: Any) -> list[dict[str, Any]]:
    """All containers anywhere in a document."""
    if isinstance(found, dict):
        return [*found.get("containers", []), *(one for value in found.values() for one in containers(value))]
    return [one for value in found for one in containers(value)] if isinstance(found, list) else []


def environment(container: dict[str, Any]) -> dict[str, Any]:
    return {item["name"]: item.get("value", item.get("valueFrom")) for item in container.get("env", [])}


def group(shape: Shape, name: str) -> dict[str, Any]:
    return next(found for found in kuberay.cluster_spec(shape)["workerGroupSpecs"] if found["groupName"] == name)


@pytest.mark.parametrize("name", all_shapes())
def test_the_same_shape_makes_the_same_bytes(name: str):
    assert render(all_shapes()[name]) == render(all_shapes()[name])


@pytest.mark.parametrize("name", all_shapes())
def test_secrets_are_by_reference_alone(name: str):
    files = render(all_shapes()[name])
    assert not [found for found in objects(files) if found.get("kind") == "Secret"]
    for container in containers(objects(files)):
        for variable, value in environment(container).items():
            if re.search(r"PASSWORD$|_TOKEN$|ACCESS_KEY|REDISCLI_AUTH", variable):
                assert "secretKeyRef" in value


@pytest.mark.parametrize("name", all_shapes())
def test_every_secret_that_a_manifest_names_is_made_or_is_the_users(name: str):
    shape = all_shapes()[name]
    files = render(shape)
    named = set(re.findall(r"secretName: (\S+)|secretKeyRef:\s+name: (\S+)", "".join(files.values())))
    wanted = {one for pair in named for one in pair if one}
    made = set(re.findall(r"secret generic (\S+)", files["kuberay/secrets.sh"]))
    own = {shape.identity.secret, shape.mlflow.database_secret, *(found.secret for found in shape.secrets.values())}
    if shape.head.redis:
        # The password of a Redis of one's own is put there by hand.
        own.add("small-redis")
    assert wanted - own == made


def test_all_ports_and_names_that_are_asked_for_are_there():
    shape = shipped()
    found = objects(render(shape, ["kuberay", "mlflow"]))
    services = {item["metadata"]["name"]: item["spec"] for item in found if item["kind"] == "Service"}
    pods = [item["spec"]["template"] for item in found if item["kind"] in ("Deployment", "StatefulSet")]
    assert set(services) == {"vit-redis", "vit-database", "vit-mlflow"}
    for spec in services.values():
        (pod,) = [pod for pod in pods if spec["selector"].items() <= pod["metadata"]["labels"].items()]
        assert spec["ports"][0]["port"] == pod["spec"]["containers"][0]["ports"][0]["containerPort"]
    # KubeRay makes this one.
    assert jobs_address(shape) == "http://vit-head-svc.patchline.svc:8265"


@pytest.mark.parametrize("name", all_shapes())
def test_mounts_have_their_volumes(name: str):
    for found in objects(render(all_shapes()[name], ["kuberay", "mlflow"])):
        for pod in pods_in(found):
            volumes = [volume["name"] for volume in pod.get("volumes", [])]
            claimed = [claim["metadata"]["name"] for claim in found["spec"].get("volumeClaimTemplates", [])]
            assert len(set(volumes)) == len(volumes)
            for container in pod["containers"]:
                assert {mount["name"] for mount in container["volumeMounts"]} <= {*volumes, *claimed}


def pods_in(found: Any) -> list[dict[str, Any]]:
    if isinstance(found, dict):
        own = [found] if "containers" in found else []
        return [*own, *(pod for value in found.values() for pod in pods_in(value))]
    return [pod for value in found for pod in pods_in(value)] if isinstance(found, list) else []


@pytest.mark.parametrize("name", all_shapes())
def test_nobody_is_root(name: str):
    for pod in pods_in(objects(render(all_shapes()[name], ["kuberay", "mlflow"]))):
        assert pod["securityContext"]["runAsNonRoot"]
        for one in [*pod["containers"], *pod.get("initContainers", [])]:
            assert not one["securityContext"]["allowPrivilegeEscalation"]
            # But for the one that opens the cache.
            assert ("runAsUser" in one["securityContext"]) == (one["name"] == "open-cache")
            assert one["securityContext"]["capabilities"]["drop"] == ["ALL"]


def test_a_folder_of_the_machine_is_given_to_the_pods_user():
    """Kubernetes makes it root's: else nothing could be written there."""
    shape = all_shapes()["machine's own"]
    pod = group(shape, "gpu")["template"]["spec"]
    (opening,) = pod["initContainers"]
    assert opening["command"] == ["chown", "1000:1000", "/cache"]
    assert pod["securityContext"]["runAsUser"] == 1000
    assert opening["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["CHOWN"]}
    (volume,) = [one for one in pod["volumes"] if one["name"] == opening["volumeMounts"][0]["name"]]
    assert volume["hostPath"]["path"] == "/mnt/nvme"
    # What it asks for is more than other levels allow.
    (space,) = [one for one in objects(render(shape, ["kuberay"])) if one["kind"] == "Namespace"]
    assert space["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "privileged"
    for other in ("example", "disks", "small"):
        assert "initContainers" not in group(all_shapes()[other], "gpu")["template"]["spec"]


def policies(shape: Shape) -> dict[str, dict[str, Any]]:
    found = objects(render(shape, ["kuberay"]))
    return {one["metadata"]["name"]: one["spec"] for one in found if one["kind"] == "NetworkPolicy"}


def test_the_operator_and_the_namespaces_pods_alone_reach_pods():
    (spec,) = policies(shipped()).values()
    assert (spec["podSelector"], spec["policyTypes"]) == ({}, ["Ingress"])
    own, operator = spec["ingress"]
    assert own == {"from": [{"podSelector": {}}]}
    (source,) = operator["from"]
    assert source["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "kuberay-operator"}
    # Jobs, and whether the head is well.
    assert {port["port"] for port in operator["ports"]} == {8265, 52365}


def test_pods_with_their_machines_addresses_reach_rays_pods():
    found = policies(all_shapes()["machine's own"])
    assert set(found) == {"small-namespace", "small-machines"}
    spec = found["small-machines"]
    assert spec["ingress"] == [{"from": [{"ipBlock": {"cidr": "10.0.0.0/16"}}, {"ipBlock": {"cidr": "10.1.0.0/16"}}]}]
    # MLflow, the database and Redis stay the pods' own.
    assert spec["podSelector"] == {"matchExpressions": [{"key": "ray.io/node-type", "operator": "Exists"}]}
    assert group(all_shapes()["machine's own"], "gpu")["template"]["spec"]["hostNetwork"]


def test_gpus_grow_from_none_to_64():
    found = group(shipped(), "gpu")
    assert (found["minReplicas"], found["maxReplicas"]) == (0, 8)
    (container,) = found["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 8
    assert container["resources"]["limits"]["vpc.amazonaws.com/efa"] == 32
    assert container["resources"]["limits"] == container["resources"]["requests"]
    assert {"name": "shared-memory", "mountPath": "/dev/shm"} in container["volumeMounts"]
    assert environment(container)["PATCHLINE_AUTOSCALED"] == "1"
    assert "PATCHLINE_AUTOSCALED" not in environment(group(made_from({}), "gpu")["template"]["spec"]["containers"][0])


def test_the_head_takes_no_work_and_finds_its_tables_again():
    spec = kuberay.cluster_spec(shipped())
    assert (
        spec["headGroupSpec"]["rayStartParams"]["num-gpus"]
        == spec["headGroupSpec"]["rayStartParams"]["num-cpus"]
        == "0"
    )
    assert spec["gcsFaultToleranceOptions"]["redisAddress"] == "vit-redis.patchline.svc:6379"


def test_a_pod_that_ends_has_the_time_for_a_checkpoint():
    pod = group(shipped(), "gpu")["template"]["spec"]
    assert environment(pod["containers"][0])["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] == "100"
    assert pod["terminationGracePeriodSeconds"] > 100


def test_communication_is_the_gpus_alone():
    shape = all_shapes()["machine's own"]
    told = environment(group(shape, "gpu")["template"]["spec"]["containers"][0])
    assert {name: told[name] for name in told if name.startswith(("NCCL", "GLOO"))} == {
        "NCCL_SOCKET_IFNAME": "eth0",
        "GLOO_SOCKET_IFNAME": "eth0",
        "NCCL_IB_HCA": "mlx5",
        "NCCL_DEBUG": "INFO",
    }
    head = kuberay.cluster_spec(shape)["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert not [name for name in environment(head) if name.startswith(("NCCL", "GLOO"))]
    # Gloo takes names alone.
    example = environment(group(shipped(), "gpu")["template"]["spec"]["containers"][0])
    assert "GLOO_SOCKET_IFNAME" not in example


@pytest.mark.parametrize(("age_s", "well"), [(0, True), (600, True), (1200, False)])
def test_a_supervisor_that_stands_still_is_ended_and_one_with_a_long_round_is_not(
    tmp_path: Path, age_s: int, well: bool
):
    """A round over many workflows takes minutes. By the probe's own command, with a heartbeat of this age."""
    (found,) = objects({"supervise.yaml": render(shipped(), ["kuberay"])["kuberay/40-supervise.yaml"]})
    (container,) = containers(found)
    heartbeat = container["command"][container["command"].index("--heartbeat") + 1]
    shell, option, script = container["livenessProbe"]["exec"]["command"]
    beat = tmp_path / "heartbeat"
    beat.touch()
    os.utime(beat, (time.time() - age_s,) * 2)
    assert heartbeat in script
    done = subprocess.run([shell, option, script.replace(heartbeat, str(beat))], check=False)
    assert (done.returncode == 0) == well


def test_our_ray_is_the_one_that_is_pinned():
    assert f"ray=={kuberay.RAY_VERSION}" in (ROOT / "constraints.txt").read_text().splitlines()
    assert f"ray=={kuberay.RAY_VERSION} " in (ROOT / "cluster/deploy/docker/cuda.lock").read_text()


def test_a_job_brings_its_workflow_and_its_cluster():
    (text,) = job(shipped(), "My_Run", "name: My_Run\n").values()
    file, found = yaml.safe_load_all(text)
    assert file["data"]["workflow.yaml"] == "name: My_Run\n"
    assert found["spec"]["entrypoint"].endswith("/workflow.yaml --id vit-my-run --unsupervised --follow")
    head = found["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert {"name": "workflow", "configMap": {"name": "vit-my-run"}} in head["volumes"]
    with pytest.raises(UserError, match="has 54 letters, and KubeRay takes names of jobs of up to 47: shorten"):
        job(shipped(), "x" * 50, "")


def test_parts_by_their_names(tmp_path: Path):
    for part in PARTS:
        assert all(name.startswith(f"{part}/") for name in render(shipped(), [part]))
    assert not [name for name in render(made_from({})) if name.startswith("ray-up")]
    with pytest.raises(UserError, match="`ray up` has to know machines"):
        render(made_from({}), ["ray-up"])
    (tmp_path / "kuberay").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot be written .* name another folder by --to"):
        write(render(shipped(), ["kuberay"]), tmp_path)
