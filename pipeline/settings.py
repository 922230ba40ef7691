"""Where things are: the home folder, the root in storage, MLflow, and the Ray cluster.

Each comes from an option, else from the environment, else from the running local stack, else from a
folder below the home. A stack that was started once and is not up does not give way to the folder:
results would seem lost. The same rules for the command line, Python and the driver.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cluster.errors import UserError
from cluster.storage import Storage, open_storage

if TYPE_CHECKING:
    from cluster.local import Stack

PASSED_ON = ("AWS_", "MLFLOW_", "PATCHLINE_", "RAY_AUTH_", "RAY_TRAIN_", "NO_PROXY", "no_proxy")
"""Beginnings of the environment variables that a submitted driver is given."""
SECRET = re.compile(r"SECRET|TOKEN(?!_PATH|_FILE)|PASSWORD|ACCESS_KEY|SECURITY|WEBHOOK")
"""In the names of variables whose values Ray would show to all who may use a cluster."""
OF_THIS_MACHINE = re.compile(
    r"RAY_AUTH_TOKEN_PATH|AWS_(DEFAULT_)?PROFILE|AWS_SHARED_CREDENTIALS_FILE|AWS_CONFIG_FILE|AWS_WEB_IDENTITY_TOKEN_FILE"
    r"|AWS_ROLE_(ARN|SESSION_NAME)|AWS_CONTAINER_\w+|AWS_EC2_METADATA_\w+|AWS_CA_BUNDLE|AWS_DATA_PATH"
    r"|MLFLOW_TRACKING_\w+_CERT_PATH|PATCHLINE_HOME"
)
"""Variables that name files, profiles and roles of the machine that they are set on. On another one they mean nothing,
or somebody else's credentials, and would come before what its pods are given."""
UNMISSED = ("RAY_AUTH_TOKEN_PATH", "PATCHLINE_HOME")
"""Of these nobody need be told: no machine of a cluster is in want of them."""
SEND_SECRETS = "PATCHLINE_SEND_SECRETS"
"""Set to 1, it has both sent all the same."""


def home() -> Path:
    """Folder of the local stack and of local results: PATCHLINE_HOME, else below XDG_STATE_HOME."""
    if own := os.environ.get("PATCHLINE_HOME"):
        return Path(own).expanduser().absolute()
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state).expanduser().absolute() / "patchline"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Addresses, and the environment that processes on the cluster need to use them."""

    root: str
    mlflow: str
    jobs: str | None = None
    """Address of the Ray cluster's job server, for example http://127.0.0.1:8265."""
    local: bool = False
    """Whether the cluster is this machine's own stack, which shares our installation."""
    alone: bool = False
    """Whether the root is the stack's too, so that no other cluster's drivers work there."""
    environment: dict[str, str] = field(default_factory=dict)

    def storage(self) -> Storage:
        """The root in storage, opened with the settings' environment."""
        self.enter()
        return open_storage(self.root)

    def enter(self) -> None:
        """Put the environment in force for this process."""
        os.environ.update(self.environment)

    def passed_on(self) -> dict[str, str]:
        """Environment for a driver on the cluster. Secrets, and what is good on this machine alone, go along only with
        the stack, which is this machine's own, or where they are to go.
        """
        found, all_go = _of_interest(), self._all_go()
        # Empty ones stay too: they would hide what a pod is given.
        own = {name: value for name, value in found.items() if all_go or not _stays_here(name)}
        return {**own, **self.environment, "MLFLOW_TRACKING_URI": self.mlflow}

    def withheld(self) -> list[str]:
        """Credentials that a driver on the cluster is not given, by their variables: its machines' own count there."""
        if self._all_go():
            return []
        found = [name for name, value in _of_interest().items() if value and _stays_here(name)]
        return sorted(name for name in found if name not in UNMISSED)

    def _all_go(self) -> bool:
        return self.local or os.environ.get(SEND_SECRETS) == "1"


def _stays_here(name: str) -> bool:
    return bool(SECRET.search(name) or OF_THIS_MACHINE.fullmatch(name))


def _of_interest() -> dict[str, str]:
    found = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
    return {name: value for name, value in found.items() if name not in ("MLFLOW_RUN_ID", SEND_SECRETS)}


def resolve(*, root: str | None = None, mlflow: str | None = None, address: str | None = None) -> Settings:
    """Settings from options, environment, the local stack, or folders below the home, in this order.

    Where another cluster is named, the local stack and the home are no places for its results: then a root
    and MLflow have to be named too, and where the stack is not up, a root. Raises UserError.
    """
    from cluster import local

    place = home()
    stack = local.load(place)
    jobs = address or os.environ.get("RAY_API_SERVER_ADDRESS") or (stack.jobs_address if stack else None)
    elsewhere = jobs is not None and (stack is None or jobs != stack.jobs_address)
    root = root or os.environ.get("PATCHLINE_ROOT")
    mlflow = mlflow or os.environ.get("MLFLOW_TRACKING_URI")
    if elsewhere and address and not (root and mlflow):
        raise UserError(
            f"{jobs} is not this machine's own stack: name "
            f"{'' if root else '--root s3://BUCKET/PREFIX'}{'' if root or mlflow else ' and '}"
            f"{'' if mlflow else '--mlflow http://HOST:PORT'}, which its machines reach too"
        )
    folder = f"file://{place}/results"
    if not root and (absent := local.missing(place)):
        raise UserError(f"{_not_up(absent)}; or name another root, such as --root {folder}")
    root = root or (stack.root if stack else folder)
    mlflow = mlflow or (stack.mlflow_url if stack else None) or f"sqlite:///{place}/mlflow.db"
    if mlflow.startswith(f"sqlite:///{place}/"):
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
    return _settings(root, mlflow, jobs, stack)


def check_reachable(settings: Settings) -> None:
    """Raise UserError where a cluster of other machines is given addresses that are good on this one alone.

    A cluster whose own address is loopback may be this machine, or a tunnel: nothing is known of it.
    """
    if settings.local or settings.jobs is None or _loopback(settings.jobs):
        return
    places = {
        "--root": settings.root if settings.root.startswith(f"file://{home()}/") else None,
        "--mlflow": settings.mlflow if not settings.mlflow.startswith("http") or _loopback(settings.mlflow) else None,
    }
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if settings.root.startswith("s3://") and endpoint is not None and _loopback(endpoint):
        places["AWS_ENDPOINT_URL"] = endpoint
    for name, value in places.items():
        if value is not None:
            raise UserError(f"{name} {value}: expected an address that the machines of {settings.jobs} reach too")


def check_up() -> None:
    """Raise UserError where the local stack was started once and is not up."""
    from cluster import local

    if absent := local.missing(home()):
        raise UserError(_not_up(absent))


def _not_up(absent: list[str]) -> str:
    verb = "does" if len(absent) == 1 else "do"
    return f"the local stack is not up ({', '.join(absent)} {verb} not run): `patchline up` starts it"


def _loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host == "localhost" or host.startswith("127.") or host == "::1"


def of_stack(stack: Stack) -> Settings:
    """Settings for the local stack alone, whatever the environment says of other places."""
    return _settings(stack.root, stack.mlflow_url, stack.jobs_address, stack)


def _settings(root: str, mlflow: str, jobs: str | None, stack: Stack | None) -> Settings:
    """The stack's credentials go with what is the stack's; the user's own with everything else."""
    if not root.startswith(("file://", "s3://")):
        meant = "" if "://" in root else f": for a folder, file://{Path(root).expanduser().absolute()}"
        raise UserError(f"root {root!r}: expected file:///FOLDER or s3://BUCKET/PREFIX{meant}")
    if mlflow and not re.match(r"[a-z][a-z0-9+.-]*://|databricks|file:", mlflow):
        # MLflow would make a folder of this name.
        raise UserError(
            f"--mlflow {mlflow}: expected the address of a server, http://HOST:5000, or of a file, "
            f"sqlite:///FOLDER/mlflow.db: try http://{mlflow}"
        )
    if "@" in urlsplit(mlflow).netloc:
        raise UserError(
            "--mlflow: got an address with a user's name, which would stand in logs and on command lines: set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, on the cluster's machines too"
        )
    local = inside = False
    environment = {}
    if stack is not None and jobs == stack.jobs_address:
        local = True
        environment |= stack.ray_environment()
    if stack is not None and f"{root}/".startswith(f"{stack.root}/"):
        inside = True
        environment |= stack.s3_environment()
    alone = local and inside
    return Settings(root=root, mlflow=mlflow, jobs=jobs, local=local, alone=alone, environment=environment)
