"""The Ray cluster as KubeRay's custom resource, and a job that brings a cluster of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.deploy import environment, names, pods
from cluster.deploy.names import Object

if TYPE_CHECKING:
    from cluster.deploy.shape import Nodes, Shape

RAY_VERSION = "2.60.0"
"""Of our images. KubeRay decides by it how it asks pods for their health, and whether they can have a token."""
RECONNECT_SECONDS = 1200
"""How long machines wait for a head that is being made anew, before they end themselves."""
STORE_SHARE = 0.5
"""Of /dev/shm that Ray's object store has; the rest is NCCL's and the loaders'."""
GRACE_SECONDS = 20
"""After a machine's notice, for Ray to end."""
GPU = "nvidia.com/gpu"
LONGEST_JOB = 47
"""Letters of a RayJob's name: KubeRay makes longer ones of it."""


def ray_cluster(shape: Shape) -> Object:
    """The RayCluster: a head whose tables outlive it, machines with GPUs, and perhaps machines for ingestion."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {**names.metadata(shape, "ray"), "name": shape.name},
        "spec": cluster_spec(shape),
    }


def cluster_spec(shape: Shape, extra: tuple[Object, Object] | None = None) -> Object:
    """Its specification. `extra` is a volume and its mount, for the head."""
    groups = [_group(shape, "gpu", shape.nodes, gpus=shape.gpus.per_node)]
    if shape.ingest is not None:
        groups.append(_group(shape, "ingest", shape.ingest, gpus=0))
    return {
        "rayVersion": RAY_VERSION,
        "authOptions": {"mode": "token", "secretName": names.token_secret(shape)},
        "gcsFaultToleranceOptions": {
            "redisAddress": names.redis_address(shape),
            "redisPassword": {
                "valueFrom": {"secretKeyRef": {"name": names.redis_secret(shape), "key": names.PASSWORD_KEY}}
            },
        },
        **_autoscaling(shape),
        "headGroupSpec": _head(shape, extra),
        "workerGroupSpecs": groups,
    }


def _autoscaling(shape: Shape) -> Object:
    groups = [nodes for nodes in (shape.nodes, shape.ingest) if nodes is not None]
    if all(nodes.min == nodes.max for nodes in groups):
        return {"enableInTreeAutoscaling": False}
    options = {
        "version": "v2",
        "idleTimeoutSeconds": int(60 * shape.nodes.idle_minutes),
        "resources": pods.resources(0.5, 1),
        "securityContext": pods.restricted(),
    }
    return {"enableInTreeAutoscaling": True, "autoscalerOptions": options}


def _head(shape: Shape, extra: tuple[Object, Object] | None) -> Object:
    head = shape.head
    shared = head.memory_gb / 4
    ports = {
        "gcs": names.GCS_PORT,
        "dashboard": names.JOBS_PORT,
        "client": names.CLIENT_PORT,
    }
    container = {
        "ports": [{"name": name, "containerPort": port} for name, port in ports.items()],
        "resources": pods.resources(head.cpus, head.memory_gb),
    }
    volumes, mounts = ([], []) if extra is None else ([extra[0]], [extra[1]])
    template = _template(shape, "head", container, shared, volumes, mounts)
    template["spec"]["nodeSelector"] = dict(head.selector)
    # Drivers are jobs without cores of their own; nothing else is to take the head's.
    start = {"dashboard-host": "0.0.0.0", "num-cpus": "0", "num-gpus": "0", **_store(shared)}
    return {"serviceType": "ClusterIP", "rayStartParams": start, "template": template}


def _group(shape: Shape, name: str, nodes: Nodes, *, gpus: int) -> Object:
    devices = {GPU: gpus, **shape.network.resources} if gpus else {}
    container = {"resources": pods.resources(nodes.cpus, nodes.memory_gb, devices)}
    template = _template(shape, name, container, nodes.shared_memory_gb, [], [], drain_s=nodes.notice_s)
    template["spec"] |= {
        "nodeSelector": dict(nodes.selector),
        "tolerations": [item.model_dump(exclude_none=True) for item in nodes.tolerations],
        "terminationGracePeriodSeconds": nodes.notice_s + GRACE_SECONDS,
    }
    if opened := pods.opened_cache(shape):
        template["spec"]["initContainers"] = opened
    if gpus and shape.network.host_network:
        template["spec"] |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    # Machines that work are not to be cleared for the sake of fewer, fuller ones.
    kept = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}
    template["metadata"]["annotations"] = kept
    size = {"replicas": nodes.min, "minReplicas": nodes.min, "maxReplicas": nodes.max}
    if nodes.min < nodes.max:
        size["idleTimeoutSeconds"] = int(60 * nodes.idle_minutes)
    return {"groupName": name, **size, "rayStartParams": _store(nodes.shared_memory_gb), "template": template}


def _template(
    shape: Shape,
    part: str,
    container: Object,
    shared_gb: float,
    volumes: list[Object],
    mounts: list[Object],
    drain_s: int = 0,
) -> Object:
    """A pod of the cluster: our image, its environment, /dev/shm, the cache, Ray's logs, the token."""
    variables = {
        **pods.storage_environment(shape),
        **environment.places(shape),
        **environment.ray(shape),
        # For commands that people run in a pod; processes of the cluster are given the token itself by KubeRay.
        **environment.token(),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{names.JOBS_PORT}" if part == "head" else "",
        "RAY_gcs_rpc_server_reconnect_timeout_s": str(RECONNECT_SECONDS),
        # A pod that is to end tells the cluster so, and waits: training saves, and goes on elsewhere.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(drain_s),
        **(environment.communication(shape) if part == "gpu" else {}),
    }
    whole = {
        "name": f"ray-{part}",
        "image": shape.image,
        "env": [
            *pods.variables({name: value for name, value in variables.items() if value}),
            *pods.secret_variables(shape),
        ],
        "securityContext": pods.restricted(),
        **container,
        "volumeMounts": [
            pods.mount(pods.SHARED, "/dev/shm"),
            pods.mount(pods.CACHE, shape.cache.mount),
            pods.mount(pods.LOGS, "/tmp/ray"),
            pods.token_mount(),
            *pods.credential_mounts(shape),
            *mounts,
        ],
    }
    all_volumes = [
        pods.shared_memory(shared_gb),
        pods.cache_volume(shape.cache) if part != "head" else {"name": pods.CACHE, "emptyDir": {}},
        {"name": pods.LOGS, "emptyDir": {}},
        pods.token_volume(shape),
        *volumes,
    ]
    return {
        "metadata": {"labels": names.labels(shape, f"ray-{part}")},
        "spec": pods.own_pod(shape, [whole], all_volumes),
    }


def _store(shared_gb: float) -> Object:
    """Parameters of `ray start`, which takes them as text."""
    return {"object-store-memory": str(int(STORE_SHARE * shared_gb * 10**9))}


def ray_job(shape: Shape, workflow: str, text: str) -> list[Object]:
    """A workflow's file and a RayJob that runs it on a cluster of its own, which goes when the workflow has ended.

    `text` is the file. The job's command submits it under an id that stays the same: a job that is tried again, on a
    new cluster, goes on with it. The supervisor, which knows the lasting cluster alone, leaves it alone: else it would
    start a second set of GPUs there.
    """
    name, folder = f"{shape.name}-{workflow}", "/etc/patchline/workflow"
    file = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": names.metadata(shape, "workflow", name),
        "data": {"workflow.yaml": text},
    }
    volume = {"name": "workflow", "configMap": {"name": name}}
    spec = cluster_spec(shape, (volume, pods.mount("workflow", folder, read_only=True)))
    job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": names.metadata(shape, "workflow", name),
        "spec": {
            "entrypoint": f"patchline submit {folder}/workflow.yaml --id {name} --unsupervised --follow",
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 600,
            "backoffLimit": 3,
            "rayClusterSpec": spec,
        },
    }
    return [file, job]
