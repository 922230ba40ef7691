"""The Redis that a Ray head finds its tables in when it is started anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.deploy import names, pods, services
from cluster.deploy.names import Object

if TYPE_CHECKING:
    from cluster.deploy.shape import Shape

IMAGE, USER = "redis:7.2.7-bookworm", 999
COMMAND = """\
exec redis-server - --dir /data --appendonly yes <<END
requirepass $REDISCLI_AUTH
END
"""
"""The password comes by the standard input: it is on no command line. Redis is the first process, which is told to end.
"""


def redis(shape: Shape) -> list[Object]:
    """Service and pod, whose tables are on a disk; nothing where the shape names a Redis of one's own."""
    if shape.head.redis:
        return []
    asked = {"exec": {"command": ["sh", "-c", "redis-cli ping | grep -q PONG"]}}
    container = {
        "name": "redis",
        "image": IMAGE,
        "command": ["sh", "-c", COMMAND],
        "env": [pods.from_secret("REDISCLI_AUTH", names.redis_secret(shape), names.PASSWORD_KEY)],
        "ports": [{"name": "redis", "containerPort": names.REDIS_PORT}],
        "resources": pods.resources(1, 2),
        "securityContext": pods.restricted(),
        "readinessProbe": pods.probe(asked, 5, 3),
        "livenessProbe": pods.probe(asked, 20, 6),
        "volumeMounts": [pods.mount("data", "/data")],
    }
    pod = {
        "securityContext": pods.owned_by(USER),
        "automountServiceAccountToken": False,
        **pods.pulled(shape),
        "containers": [container],
    }
    return [
        services.service(shape, "redis", names.REDIS_PORT),
        services.with_disk(shape, "redis", pod, "data", shape.head.redis_gb),
    ]
