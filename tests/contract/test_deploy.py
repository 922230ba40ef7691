"""A cluster's files against the schemas of who is given them: Kubernetes, KubeRay, Karpenter, Ray's launcher, S3."""

from __future__ import annotations

import copy
import importlib.util
import json
import uuid
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from cluster.deploy import bucket
from cluster.deploy.rendering import Part, job, render
from cluster.local.stack import Stack
from tests.contract.custom_fields import GROUPS, KNOWN, problems
from tests.unit.cluster.deploy.shapes import all_shapes, made_from, shipped

KUBERNETES = ("1.31", "1.34", "1.37")
"""Versions of Kubernetes whose schemas are asked."""


@pytest.fixture(scope="module")
def launcher() -> dict[str, Any]:
    """Of Ray's launcher. Found without importing Ray, which would take its token from the environment of then."""
    (folder,) = importlib.util.find_spec("ray").submodule_search_locations
    return json.loads((Path(folder) / "autoscaler" / "ray-schema.json").read_text())


def manifests(name: str) -> list[dict[str, Any]]:
    """Everything that Kubernetes is given for a shape, with a job's."""
    shape = all_shapes()[name]
    parts: list[Part] = ["kuberay", "mlflow", *(["karpenter"] if shape.karpenter else [])]
    files = {**render(shape, parts), **job(shape, "digits", "name: digits\n")}
    # The charts' values are no object of Kubernetes's.
    texts = [text for file, text in files.items() if file.endswith(".yaml") and "device-plugins" not in file]
    return [found for text in texts for found in yaml.safe_load_all(text)]


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("name", all_shapes())
def test_kubernetes_knows_every_field(name: str, version: str):
    for found in manifests(name):
        if found["apiVersion"] not in GROUPS:
            kubernetes_validate.validate(found, version, strict=True)


def test_a_field_that_kubernetes_does_not_know_is_found():
    (found,) = [item for item in manifests("example") if item["kind"] == "NetworkPolicy"]
    found["spec"]["podSelektor"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(found, KUBERNETES[-1], strict=True)


@pytest.mark.parametrize("name", all_shapes())
def test_kuberay_knows_every_field(name: str):
    found = [item for item in manifests(name) if item["apiVersion"].startswith("ray.io/")]
    assert [item["kind"] for item in found] == ["RayCluster", "RayJob"]
    assert [line for item in found for line in problems(item)] == []


def test_what_kuberay_would_refuse_is_found():
    (good,) = [item for item in manifests("example") if item["kind"] == "RayCluster"]

    def told(*path: str | int, to: Any) -> list[str]:
        found = copy.deepcopy(good)
        target: Any = found["spec"]
        for step in path[:-1]:
            target = target[step]
        if to is None:
            del target[path[-1]]
        else:
            target[path[-1]] = to
        return problems(found)

    gpu = ("workerGroupSpecs", 0)
    pod = (*gpu, "template", "spec")
    assert told("headGroupSpec", to=good["spec"]["headGroupSpec"]) == []
    assert told("enableInTreeAutoscalling", to=True) == ["RayCluster.spec.enableInTreeAutoscalling: unknown field"]
    assert told("headGroupSpec", to=None) == ["RayCluster.spec.headGroupSpec: is missing"]
    assert told(*gpu, "maxReplicas", to="8") == [
        "RayCluster.spec.workerGroupSpecs[0].maxReplicas: expected integer, got '8'"
    ]
    (line,) = told(*pod, "containers", 0, "volumeMount", to=[])
    assert line.endswith("containers[0].volumeMount: unknown field")
    (line,) = told("authOptions", "mode", to="tokens")
    assert line.endswith("authOptions.mode: got 'tokens', expected one of ['disabled', 'token']")
    (line,) = told(*gpu, "rayStartParams", "object-store-memory", to=5)
    assert line.endswith("expected string, got 5")


@pytest.mark.parametrize("name", ["example", "reserved"])
def test_karpenter_knows_every_field(name: str):
    found = [item for item in manifests(name) if item["apiVersion"].startswith("karpenter")]
    assert {item["kind"] for item in found} == {"EC2NodeClass", "NodePool"}
    assert [line for item in found for line in problems(item)] == []


def test_what_karpenter_would_refuse_is_found():
    kind, pool = [item for item in manifests("example") if item["apiVersion"].startswith("karpenter")][:2]
    kind["spec"]["instanceStorePolicy"] = "RAID1"
    pool["spec"]["template"]["spec"]["taint"] = []
    assert [*problems(kind), *problems(pool)] == [
        "EC2NodeClass.spec.instanceStorePolicy: got 'RAID1', expected one of ['RAID0']",
        "NodePool.spec.template.spec.taint: unknown field",
    ]


def test_whose_fields_these_are_is_said():
    assert KNOWN["karpenter"]["source"]["version"] == "v1.14.1"
    assert KNOWN["kuberay"]["source"] == {
        "project": "ray-project/kuberay",
        "version": "v1.7.0",
        "license": "Apache-2.0",
    }


def launchers() -> dict[str, dict[str, Any]]:
    aws = shipped().aws
    assert aws is not None
    spot = {**shipped().nodes.model_dump(), "spot": True}
    plain = {**aws.model_dump(), "efa": 0, "subnet": None, "security_groups": [], "internal": False}
    shapes = {
        "example": shipped(),
        "spot": made_from({"aws": plain, "nodes": spot, "mlflow": {"address": "http://mlflow:5000"}}),
    }
    return {name: yaml.safe_load(render(shape, ["ray-up"])["ray-up/cluster.yaml"]) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", launchers())
def test_rays_launcher_knows_every_field(name: str, launcher: dict[str, Any]):
    jsonschema.validate(launchers()[name], launcher)


@pytest.mark.parametrize("name", launchers())
def test_rays_launcher_takes_the_file(name: str):
    """By what `ray up` itself does with it before it asks AWS."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(launchers()[name])
    validate_config(prepared)
    gpu = prepared["available_node_types"]["gpu"]
    assert gpu["resources"]["GPU"] == 8
    assert prepared["max_workers"] == sum(kind["max_workers"] for kind in prepared["available_node_types"].values())


def test_rays_autoscaler_gives_each_kind_of_machine_its_own_containers():
    """By Ray's own rule of what replaces what: each kind's list of options the one that holds for all."""
    from ray.autoscaler._private.util import prepare_config
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

    found = AutoscalingConfig(prepare_config(launchers()["example"]), skip_content_hash=True)
    gpu, ingest = found.get_docker_config("gpu"), found.get_docker_config("ingest")
    assert "--device=/dev/infiniband" in gpu["worker_run_options"]
    assert not [option for option in ingest["worker_run_options"] if "infiniband" in option or "256" in option]
    for kind in (gpu, ingest, found.get_docker_config("head")):
        assert kind["image"] == shipped().image
        assert "--ulimit=memlock=-1:-1" in kind["run_options"]


def test_what_rays_launcher_would_refuse_is_found(launcher: dict[str, Any]):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**launchers()["example"], "idle_timeout": 5}, launcher)


def test_an_s3_server_takes_the_rules_of_the_bucket(stack_environment: Stack):
    """Whether it acts on them only days would show: it takes them, and gives them back as they were."""
    import boto3

    client = boto3.client("s3", endpoint_url=stack_environment.s3_endpoint, region_name="us-east-1")
    name = f"rules-{uuid.uuid4().hex[:8]}"
    client.create_bucket(Bucket=name)
    client.put_bucket_lifecycle_configuration(Bucket=name, LifecycleConfiguration=bucket.lifecycle())
    assert client.get_bucket_lifecycle_configuration(Bucket=name)["Rules"] == bucket.lifecycle()["Rules"]
