"""`doctor`: what is missing on this machine, and how to get it. Changes nothing that stays."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pipeline.doctor.installation import of_installation
from pipeline.doctor.machine import of_machine
from pipeline.doctor.places import of_places
from pipeline.preflight_comparison import Finding


@dataclass(frozen=True, kw_only=True)
class Examination:
    """All that was found, in the order of what one needs first."""

    findings: list[Finding]

    @property
    def missing(self) -> int:
        """How many things stand in the way."""
        return sum(finding.level == "problem" for finding in self.findings)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {"missing": self.missing, **asdict(self)}


def doctor(*, root: str | None = None, mlflow: str | None = None, address: str | None = None) -> Examination:
    """Look at the installation, this machine, and the places that options, environment or the local stack name.

    What is wrong is a finding; nothing is raised. In a root that is named, or the stack's, keys are
    written and removed.
    """
    found = [*of_installation(), *of_machine(), *of_places(root=root, mlflow=mlflow, address=address)]
    return Examination(findings=found)
