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


def network_policies(shape: Shape) -> list[Object]:
    """Only pods of the namespace speak to its pods, KubeRay's operator to the head, and machines to Ray's pods where
    GPU pods come with their machines' addresses.

    `kubectl port-forward` passes: it comes from the pod's own machine.
    """
    operator = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": shape.operator_namespace}}}
    ports = [{"protocol": "TCP", "port": port} for port in (names.JOBS_PORT, names.HEALTH_PORT)]
    found = [_policy(shape, "namespace", {}, {"from": [{"podSelector": {}}]}, {"from": [operator], "ports": ports})]
    if shape.network.host_network:
        machines = [{"ipBlock": {"cidr": cidr}} for cidr in shape.network.node_cidrs]
        # Of this cluster and of each RayJob's: KubeRay's label.
        ray = {"matchExpressions": [{"key": "ray.io/node-type", "operator": "Exists"}]}
        found.append(_policy(shape, "machines", ray, {"from": machines}))
    return found


def _policy(shape: Shape, part: str, pods: Object, *ingress: Object) -> Object:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": names.metadata(shape, part),
        "spec": {"podSelector": pods, "policyTypes": ["Ingress"], "ingress": list(ingress)},
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
