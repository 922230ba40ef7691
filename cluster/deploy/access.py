"""Namespace, who pods are, who may speak to them, and what a drained machine may not take along."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.deploy import names
from cluster.deploy.names import Object

if TYPE_CHECKING:
    from cluster.deploy.shape import Shape


def namespace(shape: Shape) -> Object:
    """The namespace, whose pods may ask for no rights of their machine's."""
    # hostPath and hostNetwork are more than `baseline` allows.
    level = "privileged" if shape.cache.host_path or shape.network.host_network else "baseline"
    labels = {"app.kubernetes.io/part-of": "patchline", "pod-security.kubernetes.io/enforce": level}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": shape.namespace, "labels": labels}}


def service_account(shape: Shape) -> Object:
    """Who pods are that use the bucket. EKS gives pods the annotated role; other ways need no annotation."""
    annotations = dict(shape.identity.annotations)
    if shape.identity.kind == "irsa" and shape.identity.role:
        annotations["eks.amazonaws.com/role-arn"] = shape.identity.role
    metadata = names.metadata(shape, "patchline", names.service_account(shape))
    if annotations:
        metadata["annotations"] = annotations
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}


def network_policy(shape: Shape) -> Object:
    """Only pods of the namespace speak to its pods, and KubeRay's operator to the head.

    `kubectl port-forward` passes: it comes from the pod's own machine.
    """
    operator = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": shape.operator_namespace}}}
    ports = [{"protocol": "TCP", "port": port} for port in (names.JOBS_PORT, names.HEALTH_PORT)]
    spec = {
        "podSelector": {},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {}}]}, {"from": [operator], "ports": ports}],
    }
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": names.metadata(shape, "namespace"),
        "spec": spec,
    }


def disruption_budget(shape: Shape) -> Object:
    """A machine with the head is not drained by itself: drivers would be lost, and submitted again."""
    spec = {
        "maxUnavailable": 0,
        "selector": {"matchLabels": {"ray.io/cluster": shape.name, "ray.io/node-type": "head"}},
    }
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": names.metadata(shape, "head"),
        "spec": spec,
    }
