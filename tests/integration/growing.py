"""A Ray cluster that starts machines when it is asked for more than it has: Ray's own autoscaler, whose machines are
processes of this one.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.local.processes import Process, free_ports, start, stop
from cluster.local.servers import ray_works
from tests.integration.flows import wait_for

HEAD = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
"""By which Ray's provider of such machines knows the head."""
HOST = "127.0.0.2"
"""Loopback too, and none of the addresses that Ray takes the machine's outward one in place of."""
TOKEN = "0" * 64
COMMANDS = (
    *("setup_commands", "head_setup_commands", "worker_setup_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands"),
)


@dataclass(frozen=True, kw_only=True)
class Growing:
    """Addresses of the cluster."""

    jobs: str
    gcs: str
    token: str
    """Path of the file with its token."""
    home: Path
    """Folder of its logs, and of those of machines that tests add."""


@contextmanager
def growing_cluster(machine: Mapping[str, int], most: int, *, idle_minutes: float = 10) -> Iterator[Growing]:
    """A head without CPUs, and up to `most` machines with these resources, none at first."""
    home = Path(tempfile.mkdtemp(prefix="patchline-growing-"))
    (home / "token").write_text(TOKEN)
    ports = dict(zip(("gcs", "dashboard", "client", "manager", "agent"), free_ports(5), strict=True))
    gcs = f"{HOST}:{ports['gcs']}"
    config = home / "cluster.json"
    config.write_text(json.dumps(_configuration(machine, most, gcs, idle_minutes)))
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
        *(f"--node-ip-address={HOST}", f"--port={ports['gcs']}", "--num-cpus=0", "--num-gpus=0"),
        *(f"--autoscaling-config={config}", f"--temp-dir={home}/ray", f"--object-store-memory={100 * 2**20}"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={ports['dashboard']}"),
        *(f"--ray-client-server-port={ports['client']}", f"--object-manager-port={ports['manager']}"),
        *(f"--dashboard-agent-listen-port={ports['agent']}", "--min-worker-port=0", "--max-worker-port=0"),
    ]
    environment = {
        **_environment(home / "token"),
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    process = start(command, environment=environment, log=home / "ray.log", folder=home)
    try:
        jobs = f"http://127.0.0.1:{ports['dashboard']}"
        wait_for(lambda: ray_works(jobs, TOKEN), 300, "answer of the growing cluster")
        yield Growing(jobs=jobs, gcs=gcs, token=f"{home}/token", home=home)
    finally:
        stop(process)
        shutil.rmtree(home, ignore_errors=True)


def add_machine(cluster: Growing, name: str, *, notice_s: int) -> Process:
    """A machine with a CPU, started as pods are: on SIGTERM its `ray start` tells the cluster, and waits."""
    agent, manager, metrics, runtime = free_ports(4)
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={cluster.gcs}", "--block"),
        *(f"--node-ip-address={HOST}", "--num-cpus=1", "--num-gpus=0", f"--object-store-memory={100 * 2**20}"),
        *(f"--dashboard-agent-listen-port={agent}", f"--object-manager-port={manager}"),
        *(f"--metrics-export-port={metrics}", f"--runtime-env-agent-port={runtime}"),
        *("--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats"),
    ]
    environment = {
        **_environment(Path(cluster.token)),
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(notice_s),
    }
    return start(command, environment=environment, log=cluster.home / f"{name}.log", folder=cluster.home)


def _environment(token: Path) -> dict[str, str]:
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        # As the clusters of `patchline deploy` have it.
        "PATCHLINE_AUTOSCALED": "1",
    }


def _configuration(machine: Mapping[str, int], most: int, gcs: str, idle_minutes: float) -> dict[str, Any]:
    return {
        "cluster_name": "growing",
        "max_workers": most,
        "idle_timeout_minutes": idle_minutes,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": gcs,
            "head_node_id": HEAD,
            "launch_multiple": True,
            "disable_node_updaters": True,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {}, "node_config": {}, "max_workers": 0},
            "machine": {"resources": dict(machine), "node_config": {}, "min_workers": 0, "max_workers": most},
        },
        "head_node_type": "ray.head.default",
        # What Ray's own defaults say for clouds, and not for this.
        **{name: [] for name in ("initialization_commands", "cluster_synced_files", *COMMANDS)},
        **{name: {} for name in ("auth", "docker", "file_mounts")},
    }
