"""Which versions a workflow runs on: this machine's beside the cluster's, and those that a workflow pins."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Mapping
from importlib import metadata

from cluster import jobs
from cluster.errors import UserError
from pipeline.record import builds
from pipeline.settings import Settings

DISTRIBUTION = "patchline"


def tell_on_standard_error(line: str) -> None:
    """Where nobody listens to a program's notes, they go where its errors go."""
    print(line, file=sys.stderr)


def check_versions(settings: Settings, tell: Callable[[str], None] = tell_on_standard_error) -> None:
    """Ask the cluster that the settings name what it runs on, before anything starts there.

    What cannot work is refused with UserError, as is a cluster that does not answer; other differences are told.
    Our own version is the same everywhere: the local stack runs on this installation, and any other cluster is sent
    the packages with the job.
    """
    assert settings.jobs is not None, "a cluster is named"
    found = jobs.versions(settings.jobs)
    if not settings.local:
        for line in compare(settings.jobs, found):
            tell(line)


def compare(address: str, cluster: jobs.Versions) -> list[str]:
    """The differences between a cluster and this machine that are worth a line. Raises UserError for what will fail."""
    python, ray = _needed()
    lines = []
    for name, there, here, needed in (
        ("Python", cluster.python, platform.python_version(), python),
        ("Ray", cluster.ray, metadata.version("ray"), ray),
    ):
        if there is None:
            lines.append(f"the cluster at {address} does not say its version of {name}; this patchline needs {needed}")
        elif not _within(there, needed):
            raise UserError(
                f"the cluster at {address} has {name} {there}, and this patchline needs {name} {needed}: "
                f"give its machines another {name}, or submit with the patchline that goes with it"
            )
        elif there != here:
            lines.append(f"the cluster at {address} has {name} {there}, this machine {here}: the cluster's counts")
    return lines


def _needed() -> tuple[str, str]:
    """The versions of Python and of Ray that this installation asks for, as `>=3.11` and the like."""
    from packaging.requirements import Requirement

    about = metadata.metadata(DISTRIBUTION)
    wanted = [Requirement(line) for line in about.get_all("Requires-Dist") or []]
    return about["Requires-Python"], next(str(item.specifier) for item in wanted if item.name == "ray")


def _within(version: str, wanted: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(wanted).contains(version, prereleases=True)


def check_pins(pins: Mapping[str, str]) -> None:
    """Raise UserError where this machine's builds are not those that a workflow pins, all of them in one message."""
    known = dict(builds()) if pins else {}
    found = {name: known.get(name) or _version(name) for name in pins}
    wrong = [f"{name} {found[name]} (pinned: {version})" for name, version in pins.items() if found[name] != version]
    if wrong:
        raise UserError(f"pin: this machine has {', '.join(wrong)}: install what is pinned, or change `pin`")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
