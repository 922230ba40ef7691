"""A function over items: as Ray tasks on a cluster, in this process without one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from cluster.errors import UserError


def map_tasks(
    function: Callable[[Any], Any], items: Iterable[Any], *, label: str, ray: bool = False, retries: int = 3
) -> list[Any]:
    """`function` over `items`; results in order.

    With `ray`, each item is a task with one CPU, tried again elsewhere `retries` times when its worker
    dies. `label` names the tasks on Ray's page. A UserError of a task is raised as such.
    """
    if not ray:
        return [function(item) for item in items]
    from cluster.connect import connect

    handle = connect()
    task = handle.remote(_run).options(num_cpus=1, max_retries=retries, name=label)
    results = []
    for outcome, value in handle.get([task.remote(function, item) for item in items]):
        if outcome == "user error":
            raise UserError(value)
        results.append(value)
    return results


def _run(function: Callable[[Any], Any], item: Any) -> tuple[str, Any]:
    # A user's mistake comes back as a value: raised, it would arrive wrapped in Ray's own exception.
    try:
        return "done", function(item)
    except UserError as error:
        return "user error", str(error)
