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

from cluster.deploy import containers, launcher
from cluster.deploy.rendering import render
from tests.unit.cluster.deploy.shapes import made_from, shipped


@pytest.mark.parametrize("name", ["mlflow", "supervise"])
def test_a_kept_command_starts_again_and_a_second_one_beside_it_does_not(tmp_path: Path, name: str):
    """As `ray up` gives the same lines again on a cluster that is up. A loop ends with the machine; here with us."""
    pids = tmp_path / "pids"
    # The loop's own shell, then the command's.
    kept = launcher._kept(f"{name}-{os.getpid()}", f"echo $$ >>{pids}; sleep 0.05").replace(
        containers.HOME, str(tmp_path)
    )
    kept = kept.replace("sleep 10", "sleep 0.05").replace(f"/tmp/{name}-", f"{tmp_path}/{name}-")
    try:
        for _ in range(2):
            subprocess.run(["bash", "-c", f"( {kept} )"], check=True)
        deadline = time.monotonic() + 120
        while not pids.exists() or len(pids.read_text().split()) < 5:
            assert time.monotonic() < deadline, "it was not started again"
            time.sleep(0.05)
    finally:
        loops = set(map(int, pids.read_text().split() if pids.exists() else ()))
        for pid in loops:
            os.killpg(os.getpgid(pid), signal.SIGTERM)
    assert len(loops) == 1


def test_no_token_is_on_a_command_line():
    for line in [*launcher._head_commands(shipped()), *launcher._worker_commands(shipped())]:
        assert "auth_token)" in line or "TOKEN=" not in line.replace("RAY_AUTH_TOKEN_PATH", "")


def test_each_kind_of_machine_has_its_own_devices_and_shared_memory():
    """m7i.8xlarge has no EFA, and Docker starts no container with a device that is not there."""
    types = launcher.launcher(shipped())["available_node_types"]
    gpu, ingest = (types[name]["docker"]["worker_run_options"] for name in ("gpu", "ingest"))
    assert {"--device=/dev/infiniband", "--cap-add=IPC_LOCK", "--shm-size=256000000000b"} <= set(gpu)
    assert "--shm-size=16000000000b" in ingest
    assert not [option for option in ingest if option.startswith(("--device", "--cap-add")) or "NCCL" in option]
    assert any("NCCL_SOCKET_IFNAME" in option for option in gpu)
    interfaces = types["gpu"]["node_config"]["NetworkInterfaces"]
    assert sorted(one["NetworkCardIndex"] for one in interfaces) == list(range(32))
    assert {one["InterfaceType"] for one in interfaces} == {"efa", "efa-only"}
    assert "NetworkInterfaces" not in types["ingest"]["node_config"]
    everywhere = launcher.launcher(shipped())["docker"]
    assert "worker_run_options" not in everywhere
    assert "--ulimit=memlock=-1:-1" in everywhere["run_options"]


def test_rays_store_is_half_of_the_machines_own_shared_memory(tmp_path: Path):
    program = tmp_path / "ray"
    program.write_text('#!/bin/sh\necho "$*"\n')
    program.chmod(0o755)
    (line,) = [line for line in launcher._worker_commands(shipped()) if "ray start" in line]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "RAY_HEAD_IP": "10.0.0.1"}
    script = line.replace("ulimit -n 65536; ", "")
    told = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True).stdout
    status = os.statvfs("/dev/shm")
    assert f"--object-store-memory={status.f_blocks * status.f_frsize // 2} " in told


def test_the_head_runs_the_supervisor():
    commands = launcher.launcher(shipped())["head_start_ray_commands"]
    (line,) = [line for line in commands if "patchline supervise" in line]
    assert "while true; do" in line
    assert f"RAY_AUTH_TOKEN_PATH={containers.TOKEN}" in line


WEBHOOK = {"PATCHLINE_WEBHOOK": {"secret": "webhook", "key": "address"}}


@pytest.mark.parametrize(
    ("text", "found"), [("PATCHLINE_WEBHOOK='https://example.com/a b'\n", True), ("OTHER=1\n", False), (None, False)]
)
def test_variables_of_secrets_come_from_a_file_or_the_machine_says_so(tmp_path: Path, text: str | None, found: bool):
    shape = made_from({"aws": shipped().model_dump()["aws"], "secrets": WEBHOOK})
    if text is not None:
        (tmp_path / "environment").write_text(text)
    line = f'{containers.own_variables(shape)}env | grep "^PATCHLINE_WEBHOOK="'
    # As Ray gives commands to a container.
    command = ["bash", "--login", "-c", "-i", f"true && ({line.replace(containers.OWN_FOLDER, str(tmp_path))})"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    if found:
        assert told.stdout == "PATCHLINE_WEBHOOK=https://example.com/a b\n"
        return
    assert (told.returncode != 0, told.stdout) == (True, "")
    assert "PATCHLINE_WEBHOOK: has no line in the file environment" in told.stderr


def test_ray_and_the_supervisor_have_the_variables_of_secrets():
    made = launcher.launcher(made_from({"aws": shipped().model_dump()["aws"], "secrets": WEBHOOK}))
    lines = [*made["head_start_ray_commands"], *made["worker_start_ray_commands"]]
    for words in ("ray start --head", "patchline supervise", "ray start --address"):
        (line,) = [line for line in lines if words in line]
        assert line.index(f". {containers.VARIABLES}") < line.index(words)


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
