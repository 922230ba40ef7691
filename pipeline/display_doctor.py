"""What `doctor` has found, a line each."""

from __future__ import annotations

from rich.console import Group
from rich.text import Text

from pipeline.display_preflight import findings_table
from pipeline.doctor import Examination


def doctor_report(found: Examination) -> Group:
    """The findings, and whether something stands in the way."""
    if not found.missing:
        verdict = Text("everything that is needed is here", style="green")
    else:
        things = "thing stands" if found.missing == 1 else "things stand"
        verdict = Text(f"{found.missing} {things} in the way: see ✗", style="red")
    return Group(findings_table(found.findings), Text(), verdict)
