"""Parts of pods that several objects have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from cluster.deploy import environment
from cluster.deploy.names import (
    CREDENTIALS_FOLDER,
    IDENTITY_FOLDER,
    TOKEN_FOLDER,
    TOKEN_KEY,
    Object,
    service_account,
    token_secret,
)

if TYPE_CHECKING:
    from cluster.deploy.shape import Cache, Shape

USER = 1000
"""Of our images; see `docker/`."""
SHARED, CACHE, LOGS = "shared-memory", "cache", "ray-logs"


def gigabytes(size: float) -> str:
    """A size as Kubernetes writes it: in 10^6 bytes where it is no whole number of 10^9."""
    return f"{int(size)}G" if size == int(size) else f"{round(size * 1000)}M"


def resources(cpus: float, memory_gb: float, devices: Mapping[str, int | str] = MappingProxyType({})) -> Object:
    """Requests and limits alike, so that a pod is not ended for its neighbours' sake."""
    asked: Object = {"cpu": f"{cpus:g}", "memory": gigabytes(memory_gb), **devices}
    return {"requests": dict(asked), "limits": asked}


def variables(values: Mapping[str, str]) -> list[Object]:
    """Environment variables, in the order of their names."""
    return [{"name": name, "value": values[name]} for name in sorted(values)]


def from_secret(variable: str, secret: str, key: str) -> Object:
    """An environment variable whose value is in a Secret."""
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}


def secret_variables(shape: Shape) -> list[Object]:
    """Environment variables that the shape has from Secrets."""
    return [from_secret(name, found.secret, found.key) for name, found in sorted(shape.secrets.items())]


def mount(name: str, path: str, *, read_only: bool = False) -> Object:
    """Where a container sees a volume."""
    return {"name": name, "mountPath": path, **({"readOnly": True} if read_only else {})}


def restricted() -> Object:
    """A container that cannot become more than it is."""
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def owned_by(user: int) -> Object:
    """A pod whose processes and volumes are this user's, who is not root."""
    return {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": user,
        "fsGroup": user,
        # Else every start walks through all files of a volume.
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def pulled(shape: Shape) -> Object:
    """What a registry that asks who one is needs."""
    return {"imagePullSecrets": [{"name": shape.pull_secret}]} if shape.pull_secret else {}


def own_pod(shape: Shape, containers: Sequence[Object], volumes: Sequence[Object]) -> Object:
    """Specification of a pod of our image, which comes to the bucket as the shape says."""
    return {
        "serviceAccountName": service_account(shape),
        "securityContext": owned_by(USER),
        **pulled(shape),
        "containers": list(containers),
        "volumes": [*volumes, *credential_volumes(shape)],
    }


def credential_volumes(shape: Shape) -> list[Object]:
    """Keys of a Secret, or a token that says who the pod is; nothing where EKS sees to it."""
    if shape.identity.kind == "secret":
        return [{"name": "s3-credentials", "secret": {"secretName": shape.identity.secret, "defaultMode": 0o440}}]
    if shape.identity.kind == "web-identity":
        token = {"path": "token", "audience": "sts.amazonaws.com", "expirationSeconds": 3600}
        return [{"name": "identity", "projected": {"sources": [{"serviceAccountToken": token}]}}]
    return []


def credential_mounts(shape: Shape) -> list[Object]:
    """Where a container sees these."""
    if shape.identity.kind == "secret":
        return [mount("s3-credentials", CREDENTIALS_FOLDER, read_only=True)]
    if shape.identity.kind == "web-identity":
        return [mount("identity", IDENTITY_FOLDER, read_only=True)]
    return []


def token_volume(shape: Shape) -> Object:
    """The Ray cluster's token, which Ray takes from a file of this key."""
    secret = {"secretName": token_secret(shape), "defaultMode": 0o440, "items": [{"key": TOKEN_KEY, "path": TOKEN_KEY}]}
    return {"name": "ray-token", "secret": secret}


def token_mount() -> Object:
    """Where a container sees the token."""
    return mount("ray-token", TOKEN_FOLDER, read_only=True)


def shared_memory(size_gb: float) -> Object:
    """A volume for /dev/shm, which is 64 MiB in a container otherwise: NCCL, Ray and loaders share memory there."""
    return {"name": SHARED, "emptyDir": {"medium": "Memory", "sizeLimit": gigabytes(size_gb)}}


def cache_volume(cache: Cache) -> Object:
    """The disk for shards: a folder of the machine, a disk of its own for each pod, or the machine's own disk."""
    if cache.host_path:
        return {"name": CACHE, "hostPath": {"path": cache.host_path, "type": "DirectoryOrCreate"}}
    if cache.storage_class:
        claim = {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": cache.storage_class,
            "resources": {"requests": {"storage": gigabytes(cache.size_gb)}},
        }
        return {"name": CACHE, "ephemeral": {"volumeClaimTemplate": {"spec": claim}}}
    return {"name": CACHE, "emptyDir": {"sizeLimit": gigabytes(cache.size_gb)}}


def opened_cache(shape: Shape) -> list[Object]:
    """The container that gives a folder of the machine to our user, before the others start; none for other disks.

    Kubernetes makes such a folder root's, and changes no owner by fsGroup there. This one is root, with that one right.
    """
    if not shape.cache.host_path:
        return []
    return [
        {
            "name": "open-cache",
            "image": shape.image,
            "command": ["chown", f"{USER}:{USER}", shape.cache.mount],
            "resources": resources(0.1, 0.1),
            "securityContext": {
                "runAsNonRoot": False,
                "runAsUser": 0,
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"], "add": ["CHOWN"]},
            },
            "volumeMounts": [mount(CACHE, shape.cache.mount)],
        }
    ]


def storage_environment(shape: Shape) -> dict[str, str]:
    """The bucket's place, and who one is there."""
    return {**environment.storage(shape), **environment.identity(shape)}


def disk_claim(name: str, size_gb: float) -> Object:
    """A disk that a StatefulSet's pod finds again after it was lost."""
    request = {"requests": {"storage": gigabytes(size_gb)}}
    return {"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": request}}


def probe(check: Object, period: int, failures: int) -> Object:
    """A look at a container every `period` seconds; after so many failures in a row it counts."""
    return {**check, "periodSeconds": period, "timeoutSeconds": 5, "failureThreshold": failures}
