"""MLflow's page: the columns that its list of workflows shows, and its address.

MLflow keeps a view that was shared in a tag of the experiment, and opens it by its key.
"""

from __future__ import annotations

import json

from pipeline.mlflow_ask import ask

EXPERIMENT = "patchline"
EXPERIMENT_PATH = f"/api/2.0/mlflow/experiments/get-by-name?experiment_name={EXPERIMENT}"
ANSWER_SECONDS = 5.0
VIEW = "patchline"
CLASSICAL = "workflowType=machine_learning"
"""In an address: without it MLflow opens a page among those for language models, whose side bar has no models."""
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
    try:
        number = json.loads(ask(server, EXPERIMENT_PATH, ANSWER_SECONDS))["experiment"]["experiment_id"]
    except (OSError, ValueError, KeyError):
        return server
    return f"{server}/#/experiments/{number}/runs?{CLASSICAL}&viewStateShareKey={VIEW}"
