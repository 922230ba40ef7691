"""Services and sets of one pod, as Redis and PostgreSQL are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.deploy import names, pods
from cluster.deploy.names import Object

if TYPE_CHECKING:
    from cluster.deploy.shape import Shape


def service(shape: Shape, part: str, port: int) -> Object:
    """Under which name and port a part answers in the cluster."""
    ports = [{"name": part, "port": port, "targetPort": port}]
    spec = {"selector": names.selector(shape, part), "ports": ports}
    return {"apiVersion": "v1", "kind": "Service", "metadata": names.metadata(shape, part), "spec": spec}


def deployment(shape: Shape, part: str, pod: Object) -> Object:
    """One pod, which is ended before another one is started in its place."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": names.metadata(shape, part),
        "spec": {
            "replicas": 1,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": names.selector(shape, part)},
            "template": {"metadata": {"labels": names.labels(shape, part)}, "spec": pod},
        },
    }


def with_disk(shape: Shape, part: str, pod: Object, disk: str, size_gb: float) -> Object:
    """One pod with a disk that it finds again wherever it is started anew."""
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": names.metadata(shape, part),
        "spec": {
            "serviceName": names.named(shape, part),
            "replicas": 1,
            "selector": {"matchLabels": names.selector(shape, part)},
            "template": {"metadata": {"labels": names.labels(shape, part)}, "spec": pod},
            "volumeClaimTemplates": [pods.disk_claim(disk, size_gb)],
        },
    }
