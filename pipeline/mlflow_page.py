"""MLflow's page: the columns that its list of workflows shows, and its address.

MLflow keeps a view that was shared in a tag of the experiment, and opens it by its key.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request

EXPERIMENT = "patchline"
VIEW = "patchline"
COLUMNS = (
    "attributes.`Duration`",
    "metrics.`pretrain/exaflops`",
    "metrics.`pretrain/test/accuracy`",
    "metrics.`finetune/test/accuracy`",
    "metrics.`fewshot/all/10_shot`",
    "metrics.`fewshot/held_out/10_shot`",
)


def tags() -> dict[str, str]:
    """Tags of the experiment: models are developed here, and this is the view of them."""
    view = {
        "selectedColumns": COLUMNS,
        "searchFilter": "",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
    }
    return {
        "mlflow.experimentKind": "custom_model_development",
        f"mlflow.sharedViewState.{VIEW}": json.dumps(view),
    }


def address(server: str) -> str:
    """The page with the list of workflows, or the server's first page where it has no such list yet."""
    query = urllib.parse.urlencode({"experiment_name": EXPERIMENT})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{server}/api/2.0/mlflow/experiments/get-by-name?{query}", timeout=5) as answer:
            number = json.load(answer)["experiment"]["experiment_id"]
    except (urllib.error.URLError, OSError, ValueError, KeyError):
        return server
    return f"{server}/#/experiments/{number}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"
