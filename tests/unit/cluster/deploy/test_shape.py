"""What a shape file may say, and what it is told where it says something else."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tests.unit.cluster.deploy.shapes import SMALL, all_shapes, made_from, shipped


def test_the_example_is_a_cluster_of_64_gpus():
    shape = shipped()
    assert (shape.most_gpus, shape.gpus.model, shape.nodes.min) == (64, "h100", 0)
    assert shape.artifacts == "s3://example-lab-vit/mlflow"


def test_shapes_are_values():
    shape = made_from({})
    assert shape == made_from({})
    assert hash(shape.root) == hash(made_from({}).root)
    with pytest.raises(ValidationError):
        shape.name = "other"  # type: ignore[misc]


NODES = SMALL["nodes"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nodes": {**NODES, "min": 3, "max": 2}}, "min=3 is more than max=2: lower min or raise max"),
        ({"nodes": {**NODES, "shared_memory_gb": 40}}, "more than half of memory_gb=64, .* try shared_memory_gb=16"),
        ({"root": "s3://bucket"}, "expected a folder in the bucket too, such as s3://bucket/vit"),
        ({"mlflow": {"artifacts": "s3://bucket/vit/mlflow"}}, "one lies in the other, and `patchline gc` removes"),
        ({"gpus": {"model": "h1000"}}, "got 'h1000', expected one of a100-40, "),
        ({"identity": {"kind": "irsa"}}, "kind=irsa needs role: name it"),
        ({"identity": {"kind": "secret"}}, "kind=secret needs secret: name it"),
        ({"network": {"variables": {"AWS_SECRET_ACCESS_KEY": "x"}}}, "AWS_SECRET_ACCESS_KEY is no variable of NCCL"),
        ({"network": {"host_network": True}}, "host_network=true needs node_cidrs: .* such as node_cidrs"),
        ({"network": {"node_cidrs": ["10.0.0.0/16"]}}, "node_cidrs=10.0.0.0/16 without host_network .* leave it out"),
        (
            {"network": {"host_network": True, "node_cidrs": ["10.0.0.7/16"]}},
            "10.0.0.7/16 has host bits set: expected a range of addresses, such as 10.0.0.0/16",
        ),
        ({"cache": {"mount": "/tmp/cache"}}, "pods have something there already: try /cache"),
        ({"cache": {"host_path": "/mnt", "storage_class": "gp3"}}, "give one of them"),
        ({"image": "patchline"}, "should match pattern"),
        ({"image": "Registry.example.com/patchline:1"}, "should match pattern"),
        ({"name": "Vit_1"}, "should match pattern"),
        ({"secret_key": "x"}, "Extra inputs are not permitted"),
    ],
)
def test_what_cannot_be_is_refused(changes, words):
    with pytest.raises(ValidationError, match=words):
        made_from(changes)


def test_efa_needs_to_know_the_network():
    aws = shipped().model_dump()["aws"]
    with pytest.raises(ValidationError, match="efa=32 needs subnet and security_groups"):
        made_from({"aws": {**aws, "subnet": None}})


def test_all_shapes_of_the_tests_are_shapes():
    assert len(all_shapes()) == 9
