"""What the storage's contracts are held against."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster.local.stack import Stack
from pipeline import shown_plan, tracking
from tests.contract.servers import FaultyProxy
from tests.contract.trained import Trained, environment_kept, train


@pytest.fixture
def proxy(stack_environment: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """Before the stack's S3 server; this process asks it instead."""
    server = FaultyProxy(stack_environment.s3_environment()["AWS_ENDPOINT_URL_S3"])
    with server.running():
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url)
        yield server
        server.closing.set()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is to be there when a workflow has ended: on a slow machine that takes its time."""
    monkeypatch.setattr(tracking, "PATIENCE_SECONDS", 120.0)
    monkeypatch.setattr(shown_plan, "PLAN_SECONDS", 300.0)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A workflow whose models can be registered."""
    with environment_kept():
        return train(tmp_path_factory.mktemp("trained"))
