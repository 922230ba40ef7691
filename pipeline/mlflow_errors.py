"""What the errors of MLflow's client mean, and how they are told."""

from __future__ import annotations

from cluster.storage import NotFound
from pipeline.mlflow_models import error_code


def refused(error: Exception) -> bool:
    """Whether the same call would fail for ever: MLflow found it wrong, or it follows one that was."""
    if code := error_code(error):
        return code == "INVALID_PARAMETER_VALUE"
    return isinstance(error, KeyError | TypeError | AttributeError) and not isinstance(error, NotFound)


def denied(error: Exception) -> bool:
    """Whether MLflow does not let us in: by a name or token that is wrong or missing."""
    return error_code(error) in ("UNAUTHENTICATED", "PERMISSION_DENIED")


def tell_refused(error: Exception) -> None:
    print(f"MLflow does not take this: {type(error).__name__}: {error}", flush=True)


def cause(error: BaseException) -> str:
    """What is at the bottom of an error: MLflow wraps what the system said of a connection several times."""
    while (inner := error.__cause__ or error.__context__ or getattr(error, "reason", None)) is not None:
        if not isinstance(inner, BaseException):
            break
        error = inner
    return f"{type(error).__name__}: {error}".splitlines()[0]
