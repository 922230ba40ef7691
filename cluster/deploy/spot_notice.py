"""Watches a spot machine of AWS for the notice of its end, and tells Ray: training saves, and goes on elsewhere.

`python -m cluster.deploy.spot_notice --notice 100` runs beside Ray on each spot machine that `ray up` starts. On
Kubernetes a pod is told by SIGTERM, and Ray itself passes that on (RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S).
"""

from __future__ import annotations

import argparse
import subprocess
import time
import urllib.error
import urllib.request

METADATA = "http://169.254.169.254"
"""What a machine of AWS asks about itself; it answers in a session (IMDSv2)."""
LOOK_SECONDS = 5.0
TIMEOUT_SECONDS = 5.0


def drain_command(notice_s: int, reason: str) -> list[str]:
    """The command by which Ray is told that the machine that it is run on will be gone in so many seconds."""
    return [
        *("ray", "drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION"),
        *("--reason-message", reason, "--deadline-remaining-seconds", str(notice_s)),
    ]


def taken_away(metadata: str = METADATA) -> bool:
    """Whether the machine is to be taken away. False where it is none of AWS's, or does not answer just now."""
    ttl = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    try:
        session = _ask(urllib.request.Request(f"{metadata}/latest/api/token", headers=ttl, method="PUT"))
        place = f"{metadata}/latest/meta-data/spot/instance-action"
        _ask(urllib.request.Request(place, headers={"X-aws-ec2-metadata-token": session}))
    except (OSError, urllib.error.HTTPError):
        # 404 until there is a notice.
        return False
    return True


def watch(metadata: str, notice_s: int, look_seconds: float = LOOK_SECONDS) -> int:
    """Look until there is a notice, then tell Ray; returns the exit code of that."""
    while not taken_away(metadata):
        time.sleep(look_seconds)
    return subprocess.run(drain_command(notice_s, "a spot machine is taken away"), check=False).returncode


def _ask(request: urllib.request.Request) -> str:
    # The address is the machine's own: never behind a proxy.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
        return answer.read().decode()


def main() -> None:
    """Watch until the machine's end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--notice", type=int, default=100, help="seconds that Ray is told are left")
    parser.add_argument("--metadata", default=METADATA, help="address that says it")
    options = parser.parse_args()
    watch(options.metadata, options.notice)
    # Told once: the machine ends.
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
