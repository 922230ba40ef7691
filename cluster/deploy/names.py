"""What things are called that are made from a shape, and where they answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.deploy.shape import Shape

JOBS_PORT, GCS_PORT, HEALTH_PORT, CLIENT_PORT = 8265, 6379, 52365, 10001
"""Of a Ray head: job server and dashboard; the cluster's tables; the agent's health; Ray's client."""
MLFLOW_PORT, REDIS_PORT, DATABASE_PORT = 5000, 6379, 5432
TOKEN_KEY = "auth_token"
"""Key of the cluster's token in its Secret; KubeRay looks for this one."""
PASSWORD_KEY, ADDRESS_KEY, CREDENTIALS_KEY = "password", "uri", "credentials"
TOKEN_FOLDER, CREDENTIALS_FOLDER = "/etc/patchline/ray", "/etc/patchline/s3"
"""Where pods see the token and keys: at the same place in all of them, since a job's environment names it."""
IDENTITY_FOLDER = "/var/run/secrets/patchline"

Object = dict[str, Any]
"""A document in YAML, in the making."""


def named(shape: Shape, part: str = "") -> str:
    """Name of a part of the cluster."""
    return f"{shape.name}-{part}" if part else shape.name


def labels(shape: Shape, part: str) -> dict[str, str]:
    """Labels of a part, by which people and selectors find it."""
    return {**selector(shape, part), "app.kubernetes.io/part-of": "patchline"}


def selector(shape: Shape, part: str) -> dict[str, str]:
    """Those labels that tell a part from all others, and never change."""
    return {"app.kubernetes.io/name": part, "app.kubernetes.io/instance": shape.name}


def metadata(shape: Shape, part: str, name: str | None = None, **more: Any) -> Object:
    """Metadata of an object in the shape's namespace."""
    called = {"name": name or named(shape, part), "namespace": shape.namespace}
    return {**called, "labels": labels(shape, part), **more}


def service_account(shape: Shape) -> str:
    """Name of the service account of all pods that use the bucket."""
    return named(shape, "patchline")


def token_secret(shape: Shape) -> str:
    """Name of the Secret with the Ray cluster's token."""
    return named(shape, "ray-token")


def redis_secret(shape: Shape) -> str:
    """Name of the Secret with Redis's password."""
    return named(shape, "redis")


def database_secret(shape: Shape) -> str:
    """Name of the Secret with the password of MLflow's database, of one that is made here."""
    return named(shape, "database")


def service(shape: Shape, part: str) -> str:
    """Host name of a part's service, from any namespace."""
    return f"{named(shape, part)}.{shape.namespace}.svc"


def jobs_address(shape: Shape) -> str:
    """Address of the job server on Kubernetes; KubeRay names the head's service."""
    return f"http://{service(shape, 'head-svc')}:{JOBS_PORT}"


def mlflow_address(shape: Shape) -> str:
    """Address of MLflow on Kubernetes."""
    return shape.mlflow.address or f"http://{service(shape, 'mlflow')}:{MLFLOW_PORT}"


def redis_address(shape: Shape) -> str:
    """Address of the Redis with the head's tables."""
    return shape.head.redis or f"{service(shape, 'redis')}:{REDIS_PORT}"
