"""Reading what lies in somebody else's root: tars where they are, and what their owner's clean-up does to that."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.storage import Storage
from pipeline.api import run
from pipeline.checkpoints import audit
from pipeline.collection import collect_root
from pipeline.config import Workflow, parse_workflow
from pipeline.driver import read_workflow
from pipeline.removal import delete
from pipeline.settings import Settings

ANNAS = """
name: digits
stages:
  ingest: {source: {kind: digits}, samples_per_shard: 400, validation_fraction: 0.1, test_fraction: 0.1%s}
"""
BENS = """
name: annas
stages:
  ingest: {source: {kind: webdataset, shards: {train: "%s"}}}
"""


def settings(folder: Path, user: str) -> Settings:
    return Settings(root=f"file://{folder}/{user}", mlflow=f"sqlite:///{folder}/{user}.db")


def made(user: Settings, text: str) -> str:
    workflow_id, state = run(parse(text), user)
    assert state == "done"
    return workflow_id


def parse(text: str) -> Workflow:
    return parse_workflow(text, "mine.yaml")


def tars(storage: Storage) -> str:
    """Where Anna's tars for training are, as Ben writes it."""
    (folder,) = storage.list_folders("stages/ingest/")
    return f"{storage.url}/stages/ingest/{folder}/shards/train-*.tar"


def problems(user: Settings, workflow_id: str) -> list[str]:
    storage = user.storage()
    found = audit(storage, workflow_id, read_workflow(storage, workflow_id), fast=False)
    return [problem for item in found for problem in item.problems]


@pytest.fixture
def anna(tmp_path: Path) -> Settings:
    return settings(tmp_path, "anna")


@pytest.fixture
def ben(tmp_path: Path) -> Settings:
    return settings(tmp_path, "ben")


def test_bens_data_set_is_of_annas_tars_and_has_none_of_its_own(anna, ben):
    made(anna, ANNAS % "")
    before = {key: anna.storage().stat(key) for key in anna.storage().list("")}
    workflow_id = made(ben, BENS % tars(anna.storage()))
    assert problems(ben, workflow_id) == []
    assert not [key for key in ben.storage().list("") if key.endswith(".tar")]
    # Nothing is written on her side, so rights to read are enough.
    assert {key: anna.storage().stat(key) for key in anna.storage().list("")} == before


def test_what_anna_deletes_is_gone_for_ben_whom_her_root_does_not_know(anna, ben):
    hers = made(anna, ANNAS % "")
    workflow_id = made(ben, BENS % tars(anna.storage()))
    collect_root(anna.storage(), older_than=0)
    assert problems(ben, workflow_id) == [], "while a workflow of hers uses it, gc keeps it"
    delete(hers, anna)
    assert any("train-000000.tar" in problem for problem in problems(ben, workflow_id))


def test_tars_at_a_destination_outlive_the_workflow_that_made_them(anna, ben, tmp_path):
    shared = f"file://{tmp_path}/shared/digits"
    hers = made(anna, ANNAS % f", destination: {shared}")
    workflow_id = made(ben, BENS % f"{shared}/train-*.tar")
    delete(hers, anna)
    collect_root(anna.storage(), older_than=0)
    assert problems(ben, workflow_id) == []
