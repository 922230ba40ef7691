"""Real servers for the tests: started when a test first needs them, stopped by their process ids."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from cluster import local
from cluster.local.stack import Stack
from cluster.storage import Storage, open_storage

# A slow machine is no defect of what is tested. Nor does a run fail that changes nothing, because of a rare draw: each
# test has the same examples every time, and remembers none of other runs. `make unit EXAMPLES=exploring` has others.
hypothesis.settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile("exploring", hypothesis.settings.get_profile("repeatable"), derandomize=False)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """A whole local stack of the tests' own: Ray, SeaweedFS, MLflow."""
    home = Path(tempfile.mkdtemp(prefix="patchline-test-"))
    try:
        with pytest.MonkeyPatch.context() as patch:
            # A slow machine is no defect here either.
            patch.setattr("cluster.local.stack.START_SECONDS", 300.0)
            started = local.up(home)
        yield started
    finally:
        local.down(home)
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def stack_environment(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Stack:
    """The stack, with its environment in force for this test."""
    for name, value in stack.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATCHLINE_HOME", stack.home)
    return stack


@pytest.fixture
def s3_root(stack_environment: Stack) -> str:
    """An empty prefix of the stack's bucket."""
    return f"{stack_environment.root}/{uuid.uuid4().hex}"


@pytest.fixture(params=["file", "s3"])
def any_storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """Every implementation in turn, empty."""
    if request.param == "file":
        return open_storage(f"file://{tmp_path}/root")
    return open_storage(request.getfixturevalue("s3_root"))


@pytest.fixture(autouse=True, scope="module")
def what_is_there_already_is_no_garbage() -> None:
    """Nor is it looked through for any: DeepSpeed collects garbage for each group of parameters, and a process that has
    run a thousand tests holds millions of objects."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def own_environment() -> Iterator[None]:
    """No test reads or writes the user's own stack, results or credentials."""
    saved = dict(os.environ)
    for name in list(os.environ):
        if name.startswith(("AWS_", "MLFLOW_", "PATCHLINE_", "RAY_")):
            del os.environ[name]
    os.environ["PATCHLINE_HOME"] = tempfile.mkdtemp(prefix="patchline-home-")
    # Nor opens a page on the desktop of whoever runs the tests.
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        os.environ.pop(name, None)
    os.environ["RAY_AUTH_MODE"] = "token"
    # Of no cluster: Ray does not even ask one without.
    token = Path(os.environ["PATCHLINE_HOME"]) / "ray-token"
    token.write_text("0" * 64)
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
    # A cluster's machines have the environment's python on their path.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    yield
    shutil.rmtree(os.environ["PATCHLINE_HOME"], ignore_errors=True)
    os.environ.clear()
    os.environ.update(saved)


@pytest.fixture(autouse=True)
def environment_for_one_test(own_environment: None) -> Iterator[None]:
    """What a test puts into the environment, opened settings among it, ends with it."""
    saved = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(saved)
