"""MLflow, with PostgreSQL beside it, and its files in the bucket through its own proxy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.deploy import names, pods, services
from cluster.deploy.names import Object

if TYPE_CHECKING:
    from cluster.deploy.shape import Shape

DATABASE_IMAGE, DATABASE_USER = "postgres:17.2-bookworm", 999
DATABASE = "mlflow"
"""Name of the database and of its user."""
DRIVER = "postgresql+psycopg2"
"""The driver that our images have; without its name SQLAlchemy (2.1) looks for another one."""
SERVING = "--worker-class gthread --threads 16 --keep-alive 75 --no-control-socket"
"""As the local stack serves it, for more people."""
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def mlflow(shape: Shape) -> list[Object]:
    """Server and database; nothing where the shape names a server."""
    if shape.mlflow.address:
        return []
    database = [] if shape.mlflow.database_secret else _database(shape)
    pod = pods.own_pod(shape, [_server(shape)], [{"name": "tmp", "emptyDir": {}}])
    return [
        *database,
        services.service(shape, "mlflow", names.MLFLOW_PORT),
        services.deployment(shape, "mlflow", pod),
    ]


def command(artifacts: str, *, host: str, workers: int) -> list[str]:
    """How the server is started. The database's address, which has a password, comes from the environment."""
    return [
        *("mlflow", "server", "--host", host, "--port", str(names.MLFLOW_PORT), "--workers", str(workers)),
        *("--artifacts-destination", artifacts, "--gunicorn-opts", SERVING),
    ]


def _server(shape: Shape) -> Object:
    healthy = {"httpGet": {"path": "/health", "port": names.MLFLOW_PORT}}
    values = {**pods.storage_environment(shape), **QUIET, "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(_hosts(shape))}
    return {
        "name": "mlflow",
        "image": shape.image,
        "command": command(shape.artifacts, host="0.0.0.0", workers=shape.mlflow.cpus),
        "env": [*_database_address(shape), *pods.variables(values)],
        "ports": [{"name": "mlflow", "containerPort": names.MLFLOW_PORT}],
        "resources": pods.resources(shape.mlflow.cpus, shape.mlflow.memory_gb),
        "securityContext": pods.restricted(),
        # At its first start it makes the database's tables, which takes a while.
        "startupProbe": pods.probe(healthy, 5, 60),
        "readinessProbe": pods.probe(healthy, 10, 3),
        "livenessProbe": pods.probe(healthy, 20, 6),
        "volumeMounts": [pods.mount("tmp", "/tmp"), *pods.credential_mounts(shape)],
    }


def _hosts(shape: Shape) -> list[str]:
    """Names that the server may be asked by: it refuses all others, for the sake of browsers."""
    own = names.named(shape, "mlflow")
    called = [own, f"{own}.{shape.namespace}", f"{own}.{shape.namespace}.svc", f"{own}.{shape.namespace}.svc.*"]
    # By a port that was forwarded, and by the probes.
    called += ["localhost", "127.0.0.1"]
    return [*called, *(f"{name}:*" for name in called)]


def _database_address(shape: Shape) -> list[Object]:
    uri = "MLFLOW_BACKEND_STORE_URI"
    if shape.mlflow.database_secret:
        return [pods.from_secret(uri, shape.mlflow.database_secret, names.ADDRESS_KEY)]
    host = f"{names.service(shape, 'database')}:{names.DATABASE_PORT}"
    # Kubernetes puts the password in place of $(…); it comes first, as it has to.
    return [
        pods.from_secret("DATABASE_PASSWORD", names.database_secret(shape), names.PASSWORD_KEY),
        {"name": uri, "value": f"{DRIVER}://{DATABASE}:$(DATABASE_PASSWORD)@{host}/{DATABASE}"},
    ]


def _database(shape: Shape) -> list[Object]:
    ready = {"exec": {"command": ["pg_isready", "-U", DATABASE, "-d", DATABASE]}}
    folder = "/var/lib/postgresql/data"
    values = {"POSTGRES_USER": DATABASE, "POSTGRES_DB": DATABASE, "PGDATA": f"{folder}/pgdata"}
    secret = pods.from_secret("POSTGRES_PASSWORD", names.database_secret(shape), names.PASSWORD_KEY)
    container = {
        "name": "postgres",
        "image": DATABASE_IMAGE,
        "env": [*pods.variables(values), secret],
        "ports": [{"name": "database", "containerPort": names.DATABASE_PORT}],
        "resources": pods.resources(1, 2),
        "securityContext": pods.restricted(),
        "readinessProbe": pods.probe(ready, 10, 3),
        "livenessProbe": pods.probe(ready, 20, 6),
        "volumeMounts": [pods.mount("data", folder), pods.mount("run", "/var/run/postgresql")],
    }
    pod = {
        "securityContext": pods.owned_by(DATABASE_USER),
        "automountServiceAccountToken": False,
        **pods.pulled(shape),
        "containers": [container],
        "volumes": [{"name": "run", "emptyDir": {}}],
    }
    return [
        services.service(shape, "database", names.DATABASE_PORT),
        services.with_disk(shape, "database", pod, "data", shape.mlflow.database_gb),
    ]
