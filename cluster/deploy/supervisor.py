"""`patchline supervise` as a Deployment, which Kubernetes starts again wherever its machine goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.deploy import environment, names, pods, services
from cluster.deploy.names import Object

if TYPE_CHECKING:
    from cluster.deploy.shape import Shape

HEARTBEAT, SILENT_SECONDS = "/tmp/heartbeat", 900
"""A file that each round touches; one that has not for so long stands still. A round over many workflows takes time."""


def supervisor(shape: Shape) -> Object:
    """The Deployment. It knows nothing that is not in the bucket, and has a job server and a bucket to reach."""
    values = {
        **pods.storage_environment(shape),
        **environment.places(shape),
        **environment.token(),
        "RAY_API_SERVER_ADDRESS": names.jobs_address(shape),
        "PYTHONUNBUFFERED": "1",
    }
    fresh = f"test $(( $(date +%s) - $(stat -c %Y {HEARTBEAT}) )) -lt {SILENT_SECONDS}"
    beats = {"exec": {"command": ["sh", "-c", fresh]}}
    container = {
        "name": "supervise",
        "image": shape.image,
        "command": ["patchline", "supervise", "--json", "--heartbeat", HEARTBEAT],
        "env": [*pods.variables(values), *pods.secret_variables(shape)],
        "resources": pods.resources(0.5, 1),
        "securityContext": pods.restricted(),
        "startupProbe": pods.probe(beats, 5, 60),
        "livenessProbe": pods.probe(beats, 60, 3),
        "volumeMounts": [pods.mount("tmp", "/tmp"), pods.token_mount(), *pods.credential_mounts(shape)],
    }
    volumes = [{"name": "tmp", "emptyDir": {}}, pods.token_volume(shape)]
    return services.deployment(shape, "supervise", pods.own_pod(shape, [container], volumes))
