"""Whether the places that are named answer: the local stack, the root in storage, MLflow, a Ray cluster; and clocks."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from threading import Thread
from urllib.error import HTTPError
from urllib.request import urlopen

from cluster import local
from cluster.errors import UserError
from pipeline import preflight
from pipeline.preflight_comparison import Finding
from pipeline.preflight_findings import CLOCK_SECONDS, REFUSED_SECONDS
from pipeline.settings import SECRET, Settings, home, resolve
from pipeline.versions import check_versions

ANSWER_SECONDS, ROOT_SECONDS = 4.0, 20.0
"""How long each place is waited for, and the root, which is written from several threads."""
ADDRESSES = ("MLFLOW_TRACKING_URI", "RAY_API_SERVER_ADDRESS")
"""Variables that name places, beside PATCHLINE_ROOT."""
CREDENTIALS = ("AWS_", "MLFLOW_TRACKING_", "RAY_AUTH_", "PATCHLINE_WEBHOOK")


def of_places(*, root: str | None = None, mlflow: str | None = None, address: str | None = None) -> Iterator[Finding]:
    """The findings. Without options these are the places of the environment and the local stack."""
    named = root or os.environ.get("PATCHLINE_ROOT")
    yield stack(elsewhere=bool(named))
    yield from credentials(dict(os.environ), named or "")
    up = local.load(home()) is not None
    if not (up or named or mlflow or address or any(os.environ.get(name) for name in ADDRESSES)):
        return
    try:
        settings = resolve(root=root, mlflow=mlflow, address=address)
    except UserError as error:
        if named or not local.missing(home()):
            # Else all has been said of the stack that is not up.
            yield Finding(level="problem", check="places", told=str(error))
        return
    settings.enter()
    if named or up:
        yield within("root", lambda: storage(settings), ROOT_SECONDS)
    if settings.mlflow.startswith("http"):
        tracking = within("MLflow", lambda: preflight.tracking(settings.mlflow))
        yield tracking
        if tracking.level == "ok":
            yield within("clock", lambda: clock(settings.mlflow))
    if settings.jobs is not None:
        yield within("Ray", lambda: ray(settings))


def within(check: str, find: Callable[[], Finding], seconds: float = ANSWER_SECONDS) -> Finding:
    """What `find` finds, or that it took too long: storage that is away is asked again and again, for a minute."""
    found: list[Finding] = []

    def ask() -> None:
        try:
            found.append(find())
        except (UserError, OSError) as error:
            found.append(Finding(level="problem", check=check, told=str(error)))

    # A daemon: what does not answer does not keep the program from ending.
    asked = Thread(target=ask, daemon=True)
    asked.start()
    asked.join(seconds)
    late = f"no answer in {seconds:.0f} s: is the address right, and is it reached from here?"
    return found[0] if found else Finding(level="problem", check=check, told=late)


def stack(*, elsewhere: bool) -> Finding:
    """Whether the local stack is up. Where another root is named, it need not be."""
    found = local.load(home())
    if found is not None:
        return Finding(level="ok", check="local stack", told=f"up: `patchline ui` has its pages; root {found.root}")
    if absent := local.missing(home()):
        told = f"was started, and {', '.join(absent)} do not run: `patchline up` starts them again"
        return Finding(level="warning" if elsewhere else "problem", check="local stack", told=told)
    told = "not started: `patchline up` starts Ray, S3 and MLflow here; `patchline run` needs none of them"
    return Finding(level="ok" if elsewhere else "warning", check="local stack", told=told)


def credentials(environment: dict[str, str], root: str) -> Iterator[Finding]:
    """Which credentials the environment names, never what they are."""
    names = sorted(name for name, value in environment.items() if value and name.startswith(CREDENTIALS))
    found = [name for name in names if SECRET.search(name) or name.endswith(("PROFILE", "_FILE", "_PATH", "USERNAME"))]
    file = Path(environment.get("AWS_SHARED_CREDENTIALS_FILE") or Path.home() / ".aws" / "credentials")
    found += [str(file)] if file.is_file() and "AWS_SHARED_CREDENTIALS_FILE" not in found else []
    lonely = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} & set(found)
    if len(lonely) == 1:
        missing = ({"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} - lonely).pop()
        told = f"{lonely.pop()} is set and {missing} is not: export both, or neither"
        yield Finding(level="problem", check="credentials", told=told)
    elif found:
        yield Finding(level="ok", check="credentials", told=f"named: {', '.join(found)}")
    elif root.startswith("s3://"):
        told = (
            f"none are named for {root}: a role of this machine is taken, if it has one; else export "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
        yield Finding(level="warning", check="credentials", told=told)


def storage(settings: Settings) -> Finding:
    """Whether the root can be written, with conditions."""
    found = preflight.conditions(settings.storage(), f"scratch/doctor-{secrets.token_hex(4)}")
    return Finding(level=found.level, check="root", told=found.told)


def ray(settings: Settings) -> Finding:
    """Whether the cluster's job server answers, and has versions that go with ours."""
    lines = list[str]()
    check_versions(settings, lines.append)
    if lines:
        return Finding(level="warning", check="Ray", told="; ".join(lines))
    told = f"{settings.jobs} answers, with versions that go with this machine's"
    return Finding(level="ok", check="Ray", told=told)


def clock(address: str) -> Finding:
    """How far this machine's clock is from that of a server, which says its own with every answer."""
    try:
        with urlopen(address, timeout=ANSWER_SECONDS) as answer:
            said = answer.headers.get("Date")
    except HTTPError as error:
        said = error.headers.get("Date")
    if said is None:
        return Finding(level="ok", check="clock", told=f"{address} does not say its own")
    return compared(parsedate_to_datetime(said).timestamp() - time.time(), address)


def compared(ahead: float, address: str) -> Finding:
    """What a server's clock means that is so many seconds ahead; it is said in whole seconds."""
    if abs(ahead) <= CLOCK_SECONDS + 1:
        return Finding(level="ok", check="clock", told=f"within {CLOCK_SECONDS + 1:.0f} s of {address}'s")
    told = f"{abs(ahead):.0f} s {'behind' if ahead > 0 else 'ahead of'} {address}'s: let NTP (chrony) set it"
    refused = abs(ahead) > REFUSED_SECONDS
    return Finding(level="problem" if refused else "warning", check="clock", told=told)
