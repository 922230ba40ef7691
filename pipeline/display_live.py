"""A workflow that runs, as a table of its stages: for a terminal of a given height, and for a notebook."""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.display import MARKS, attempt, figures, joined
from pipeline.progress import LOSS, Progress
from pipeline.status import StageStatus, WorkflowStatus
from pipeline.words import duration, headline

BAR = 24
"""Columns of a bar."""
NOTEBOOK_WIDTH = 110
COUNTED = {"pending": "waiting", "reused": "done"}
"""What stages of an outcome are counted as, where that is not the outcome's own name."""


def view(status: WorkflowStatus, progress: Progress) -> Group:
    """A line for each stage: its bar or its time, and its figures."""
    return _table(status, progress, list(status.stages.values()))


def fitting(status: WorkflowStatus, progress: Progress, console: Console) -> Group:
    """The same in as many lines as the console has: what cannot all be shown is counted."""
    whole = view(status, progress)
    # The last line stays free for the cursor.
    if len(console.render_lines(whole, pad=False)) < console.height:
        return whole
    return _table(status, progress, chosen(list(status.stages.values()), max(1, console.height - 2)), wrap=False)


def chosen(stages: Sequence[StageStatus], lines: int) -> list[StageStatus | str]:
    """Of so many lines, one for each stage that matters, in their order; of the others, how many are done or waiting.

    What has failed comes first, then what runs, then what was done last and what is next.
    """
    by_weight = _by_weight(stages)
    room = len(by_weight)
    while room > 0 and room + len({_counted(stage) for stage in by_weight[room:]}) > lines:
        room -= 1
    shown = {stage.name for stage in by_weight[:room]}
    left = Counter(_counted(stage) for stage in by_weight[room:])
    found: list[StageStatus | str] = []
    for stage in stages:
        if stage.name in shown:
            found.append(stage)
        elif count := left.pop(_counted(stage), 0):
            found.append(f"… {count:,} {_counted(stage)}")
    return found


def _by_weight(stages: Sequence[StageStatus]) -> list[StageStatus]:
    failed, running, waiting, over = [], [], [], []
    kinds = {"failed": failed, "running": running, "pending": waiting}
    for stage in stages:
        kinds.get(stage.outcome, over).append(stage)
    beside = chain.from_iterable(zip_longest(reversed(over), waiting))
    return [*failed, *running, *(stage for stage in beside if stage is not None)]


def _counted(stage: StageStatus) -> str:
    return COUNTED.get(stage.outcome, stage.outcome)


def _table(
    status: WorkflowStatus, progress: Progress, rows: Iterable[StageStatus | str], *, wrap: bool = True
) -> Group:
    table = Table.grid(padding=(0, 2))
    for narrow in (True, True, True, False):
        table.add_column(no_wrap=narrow)
    for row in rows:
        if isinstance(row, str):
            table.add_row("", Text(row, style="dim"), "", "")
            continue
        mark, style = MARKS[row.outcome]
        first, last = _cells(row, progress)
        table.add_row(Text(mark, style=style), Text(row.name, style=style), first, last if wrap else _cut(last))
    head = Text.assemble((status.id, "bold"), "  ", (status.state, "cyan"), f"  {status.message}")
    return Group(head if wrap else _cut(head), table)


def _cut(text: Text) -> Text:
    """On one line, as far as that goes."""
    text.no_wrap, text.overflow = True, "ellipsis"
    text.plain = text.plain.partition("\n")[0]
    return text


def html(view: RenderableType) -> str:
    """The same for a notebook, in which colours are the page's own but for those of marks and bars."""
    console = Console(record=True, file=io.StringIO(), width=NOTEBOOK_WIDTH, force_jupyter=False)
    console.print(view)
    return console.export_html(
        inline_styles=True, code_format="<pre style='font-family:monospace;line-height:1.35'>{code}</pre>"
    )


def _cells(stage: StageStatus, progress: Progress) -> tuple[RenderableType, Text]:
    if stage.outcome == "running" and stage.started_ms is not None:
        seconds = f"{max(0.0, time.time() - stage.started_ms / 1000):.0f} s"
        if (gets_on := moving(stage, progress)) and (length := stage.updates or stage.tasks_total):
            done = stage.update if stage.updates else stage.tasks_done
            return ProgressBar(total=length, completed=done or 0, width=BAR), Text(gets_on)
        return Text(seconds), Text(joined(stage.tasks, stage.message, attempt(stage)), style="dim")
    if stage.outcome in ("done", "reused") and stage.seconds is not None:
        return Text("reused" if stage.outcome == "reused" else duration(stage.seconds)), Text(headline(stage.metrics))
    return Text(stage.outcome if stage.outcome != "pending" else "", style="dim"), Text(stage.message)


def moving(stage: StageStatus, progress: Progress) -> str:
    """How far a stage is that runs, with its newest loss; empty where nobody knows."""
    tail = progress.tail(stage)
    if stage.updates and stage.update is not None and tail is not None:
        loss = f"loss {tail.values[LOSS]:.3f}" if LOSS in tail.values else ""
        return joined(figures(stage), loss, attempt(stage))
    return joined(stage.tasks, attempt(stage)) if stage.tasks else ""
