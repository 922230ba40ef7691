"""Shapes to make files of: the shipped example, and others that differ from it where files do."""

from __future__ import annotations

from typing import Any

import yaml

from cluster.deploy.rendering import example
from cluster.deploy.shape import Shape

SMALL: dict[str, Any] = {
    "name": "small",
    "image": "patchline:1",
    "root": "s3://bucket/vit",
    "nodes": {"min": 1, "max": 1, "cpus": 4, "memory_gb": 64, "shared_memory_gb": 2.5},
    "identity": {"kind": "secret", "secret": "keys"},
}
"""What has to be said, and no more; the number of machines stays."""

VARIANTS: dict[str, dict[str, Any]] = {
    "small": {},
    "own servers": {
        "head": {"redis": "redis.example.com:6379"},
        "mlflow": {"address": "https://mlflow.example.com"},
        "secrets": {"MLFLOW_TRACKING_PASSWORD": {"secret": "mlflow", "key": "password"}},
    },
    "managed database": {"mlflow": {"database_secret": "rds", "artifacts": "s3://other/mlflow"}, "pull_secret": "pull"},
    "irsa": {"identity": {"kind": "irsa", "role": "arn:aws:iam::123456789012:role/vit"}},
    "web identity": {
        "identity": {
            "kind": "web-identity",
            "role": "arn:aws:iam::123456789012:role/vit",
            "annotations": {"iam.gke.io/gcp-service-account": "vit@example.iam.gserviceaccount.com"},
        },
        "endpoint": "https://s3.example.com",
    },
    "reserved": {
        "karpenter": {
            "cluster": "lab",
            "role": "machines",
            "subnets": ["subnet-0123"],
            "placement_group": "small",
            "reservation": "cr-0123456789abcdef0",
            "capacity_block": True,
        },
        "nodes": {
            **SMALL["nodes"],
            "selector": {"example.com/rack": "7"},
            "tolerations": [{"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoExecute"}],
        },
    },
    "disks": {"cache": {"storage_class": "gp3", "size_gb": 100}, "data": ["s3://images", "s3://more/of/them"]},
    "machine's own": {
        "cache": {"host_path": "/mnt/nvme"},
        "network": {
            "interface": "eth0",
            "infiniband": "mlx5",
            "host_network": True,
            "node_cidrs": ["10.0.0.0/16", "10.1.0.0/16"],
            "variables": {"NCCL_DEBUG": "INFO"},
            "resources": {"rdma/ib": 8},
        },
    },
}


def made_from(changes: dict[str, Any]) -> Shape:
    """The small shape with changes."""
    return Shape.model_validate({**SMALL, **changes})


def shipped() -> Shape:
    """The shape of the shipped example."""
    return Shape.model_validate(yaml.safe_load(example()))


def all_shapes() -> dict[str, Shape]:
    """Every shape, by its name."""
    return {"example": shipped(), **{name: made_from(changes) for name, changes in VARIANTS.items()}}
