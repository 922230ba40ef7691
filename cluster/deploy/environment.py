"""The environment that processes of a cluster are given, in one place for Kubernetes and `ray up`. No secrets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.deploy.names import (
    CREDENTIALS_FOLDER,
    CREDENTIALS_KEY,
    IDENTITY_FOLDER,
    TOKEN_FOLDER,
    TOKEN_KEY,
    mlflow_address,
)

if TYPE_CHECKING:
    from cluster.deploy.shape import Shape

STOP_SECONDS = 600
"""How long a job that is asked to stop is given for its checkpoint."""


def storage(shape: Shape) -> dict[str, str]:
    """How to reach the bucket. Credentials come from the machine's or the pod's identity."""
    found = {"AWS_REGION": shape.region, "AWS_DEFAULT_REGION": shape.region}
    if shape.endpoint:
        # Other stores than AWS's may not know boto3's newer checksums.
        checksums = ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION")
        endpoints = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "MLFLOW_S3_ENDPOINT_URL")
        found |= dict.fromkeys(endpoints, shape.endpoint) | dict.fromkeys(checksums, "when_required")
    return found


def identity(shape: Shape) -> dict[str, str]:
    """As whom pods come to the bucket, where nothing in Kubernetes says it for them."""
    if shape.identity.kind == "secret":
        return {"AWS_SHARED_CREDENTIALS_FILE": f"{CREDENTIALS_FOLDER}/{CREDENTIALS_KEY}"}
    if shape.identity.kind == "web-identity" and shape.identity.role:
        return {"AWS_ROLE_ARN": shape.identity.role, "AWS_WEB_IDENTITY_TOKEN_FILE": f"{IDENTITY_FOLDER}/token"}
    return {}


def communication(shape: Shape) -> dict[str, str]:
    """How GPUs of different machines talk: what NCCL, Gloo and libfabric read."""
    network, found = shape.network, dict[str, str]()
    if network.interface:
        found |= {"NCCL_SOCKET_IFNAME": network.interface}
        # Gloo takes names alone, none that are left out.
        if not network.interface.startswith("^"):
            found |= {"GLOO_SOCKET_IFNAME": network.interface}
    if network.infiniband:
        found |= {"NCCL_IB_HCA": network.infiniband}
    return found | network.variables


def ray(shape: Shape) -> dict[str, str]:
    """What all processes of the Ray cluster share."""
    found = {
        "RAY_AUTH_MODE": "token",
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS),
        "RAY_USAGE_STATS_ENABLED": "0",
        # The cache of shards and the helper that is compiled lie below the temporary folder.
        "TMPDIR": shape.cache.mount,
        "PYTHONUNBUFFERED": "1",
    }
    if any(nodes.min < nodes.max for nodes in (shape.nodes, shape.ingest) if nodes is not None):
        found["PATCHLINE_AUTOSCALED"] = "1"
    return found


def places(shape: Shape, mlflow: str | None = None) -> dict[str, str]:
    """Where everything is, so that `patchline list` needs no options on the cluster's own machines."""
    return {"PATCHLINE_ROOT": shape.root, "MLFLOW_TRACKING_URI": mlflow or mlflow_address(shape)}


def token() -> dict[str, str]:
    """Where a pod that talks to the Ray cluster finds its token."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": f"{TOKEN_FOLDER}/{TOKEN_KEY}"}
