"""What the machines of `ray up` are told to run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from cluster.deploy import launcher
from cluster.deploy.rendering import render
from tests.unit.cluster.deploy.shapes import made_from, shipped


@pytest.mark.parametrize("name", ["mlflow", "supervise"])
def test_a_kept_command_starts_again_and_a_second_one_beside_it_does_not(tmp_path: Path, name: str):
    """As `ray up` gives the same lines again on a cluster that is up. A loop ends with the machine; here with us."""
    pids = tmp_path / "pids"
    # The loop's own shell, then the command's.
    kept = launcher._kept(f"{name}-{os.getpid()}", f"echo $$ >>{pids}; sleep 0.05").replace(
        launcher.HOME, str(tmp_path)
    )
    kept = kept.replace("sleep 10", "sleep 0.05").replace(f"/tmp/{name}-", f"{tmp_path}/{name}-")
    try:
        for _ in range(2):
            subprocess.run(["bash", "-c", f"( {kept} )"], check=True)
        deadline = time.monotonic() + 60
        while not pids.exists() or len(pids.read_text().split()) < 5:
            assert time.monotonic() < deadline, "it was not started again"
            time.sleep(0.05)
    finally:
        loops = set(map(int, pids.read_text().split()))
        for pid in loops:
            os.killpg(os.getpgid(pid), signal.SIGTERM)
    assert len(loops) == 1


def test_no_token_is_on_a_command_line():
    for line in [*launcher._head_commands(shipped()), *launcher._worker_commands(shipped())]:
        assert "auth_token)" in line or "TOKEN=" not in line.replace("RAY_AUTH_TOKEN_PATH", "")


def test_a_spot_machine_watches_for_its_notice():
    nodes = {**shipped().nodes.model_dump(), "spot": True, "notice_s": 90}
    aws = shipped().model_dump()["aws"]
    found = launcher.launcher(made_from({"aws": aws, "nodes": nodes}))
    assert found["available_node_types"]["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert any("cluster.deploy.spot_notice --notice 90" in line for line in found["worker_start_ray_commands"])
    assert not any("spot_notice" in line for line in launcher.launcher(shipped())["worker_start_ray_commands"])


def test_machines_log_in_to_awss_registry_alone():
    aws, host = shipped().model_dump()["aws"], "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
    shape = made_from({"aws": aws, "image": f"{host}/team/patchline:0.1.0-cuda"})
    (_, login) = launcher.launcher(shape)["initialization_commands"]
    assert login.startswith("aws ecr get-login-password --region eu-west-1 | docker login ")
    assert login.endswith(f" {host}")
    assert not any("docker login" in line for line in launcher.launcher(shipped())["initialization_commands"])
    files = render(shape, ["bucket"])
    (_, pull) = json.loads(files["bucket/registry-policy.json"])["Statement"]
    assert pull["Resource"] == ["arn:aws:ecr:eu-west-1:123456789012:repository/team/patchline"]
    lines = [line for line in files["bucket/roles.sh"].splitlines() if "registry-policy.json" in line]
    assert [line.split()[4] for line in lines] == ["vit-worker", "vit-head"]
    assert "bucket/registry-policy.json" not in render(shipped(), ["bucket"])


def test_a_capacity_block_is_asked_for_as_one():
    aws = {**shipped().model_dump()["aws"], "reservation": "cr-0123456789abcdef0"}
    plain = launcher.launcher(made_from({"aws": aws}))["available_node_types"]["gpu"]["node_config"]
    assert "InstanceMarketOptions" not in plain
    block = launcher.launcher(made_from({"aws": {**aws, "capacity_block": True}}))
    config = block["available_node_types"]["gpu"]["node_config"]
    assert config["InstanceMarketOptions"] == {"MarketType": "capacity-block"}
    assert config["CapacityReservationSpecification"] == plain["CapacityReservationSpecification"]
    with pytest.raises(ValidationError, match="capacity_block=true needs reservation"):
        made_from({"aws": {**aws, "reservation": None, "capacity_block": True}})
