"""Who may do what in the bucket, against what our storage asks S3 for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cluster.deploy import bucket
from cluster.deploy.rendering import render
from cluster.storage import multipart, s3
from tests.unit.cluster.deploy.shapes import all_shapes, made_from, shipped

NEEDS = {
    "head_object": "s3:GetObject",
    "get_object": "s3:GetObject",
    "put_object": "s3:PutObject",
    "upload_file": "s3:PutObject",
    "create_multipart_upload": "s3:PutObject",
    "upload_part": "s3:PutObject",
    "complete_multipart_upload": "s3:PutObject",
    "abort_multipart_upload": "s3:AbortMultipartUpload",
    "delete_object": "s3:DeleteObject",
    "list_objects_v2": "s3:ListBucket",
    # Of the local stack's own buckets alone.
    "create_bucket": None,
}
"""The right that each of boto3's calls needs, by AWS's reference of S3's actions."""


def calls() -> set[str]:
    """Every call of an S3 client in the only modules that have one."""
    text = "".join(Path(str(module.__file__)).read_text() for module in (s3, multipart))
    return set(re.findall(r"client(?:\(\))?\.([a-z0-9]+(?:_[a-z0-9]+)+)\(", text))


def test_workers_may_do_what_storage_asks_for_and_no_more():
    assert calls() == set(NEEDS)
    granted = {action for statement in bucket.workers_policy(shipped())["Statement"] for action in statement["Action"]}
    assert granted == {right for right in NEEDS.values() if right}


def test_images_are_read_and_never_written():
    statements = {item["Sid"]: item for item in bucket.workers_policy(all_shapes()["disks"])["Statement"]}
    assert statements["Images"]["Action"] == ["s3:GetObject"]
    assert statements["Images"]["Resource"] == ["arn:aws:s3:::images/*", "arn:aws:s3:::more/of/them/*"]
    assert statements["Root"]["Resource"] == ["arn:aws:s3:::bucket/vit/*"]
    assert statements["List"]["Resource"] == [f"arn:aws:s3:::{name}" for name in ("bucket", "images", "more")]


def test_readers_write_nothing():
    actions = {action for item in bucket.reader_policy(shipped())["Statement"] for action in item["Action"]}
    assert actions == {"s3:GetObject", "s3:ListBucket"}


def test_roles_are_made_with_the_documents_that_are_there():
    lines = render(shipped(), ["bucket"])["bucket/roles.sh"].splitlines()
    roles = {word for line in lines for word in re.findall(r"--role-name (\S+)", line)}
    assert roles == {"vit-patchline", "vit-worker", "vit-head"}
    documents = {word for line in lines for word in re.findall(r"file://(\S+)", line)}
    assert {f"bucket/{name}" for name in documents} <= set(render(shipped(), ["bucket"]))
    # The rights to start machines are the head's alone.
    assert [line.split()[4] for line in lines if "head-policy.json" in line] == ["vit-head"]
    assert "bucket/roles.sh" not in render(made_from({}), ["bucket"])


def test_mlflow_has_its_own_folder_alone():
    (resources,) = [item["Resource"] for item in bucket.mlflow_policy(shipped())["Statement"] if item["Sid"] == "Files"]
    assert resources == ["arn:aws:s3:::example-lab-vit/mlflow/*"]


@pytest.mark.parametrize(("region", "constraint"), [("us-east-1", False), ("eu-central-1", True)])
def test_the_first_region_is_not_named(region: str, constraint: bool):
    (create, *_) = bucket.commands(made_from({"region": region}))
    assert ("LocationConstraint=" in create) == constraint


def test_the_head_passes_on_no_other_role():
    aws = shipped().aws
    assert aws is not None
    (passing,) = [item for item in bucket.head_policy(aws)["Statement"] if item["Action"] == ["iam:PassRole"]]
    assert passing["Resource"] == [
        "arn:aws:iam::123456789012:role/vit-head",
        "arn:aws:iam::123456789012:role/vit-worker",
    ]


def test_users_of_one_bucket_write_below_their_own_roots_alone():
    """Also where one's name begins with the other's; what they share is read."""
    roots = {name: f"s3://lab-vit/users/{name}" for name in ("ann", "anna")}
    for name, root in roots.items():
        shape = shipped().model_copy(update={"root": root, "data": ("s3://lab-vit/shared",)})
        policies = (bucket.workers_policy(shape), bucket.reader_policy(shape), bucket.mlflow_policy(shape))
        granted = [item for policy in policies for item in policy["Statement"] if "s3:PutObject" in item["Action"]]
        (other,) = (found for known, found in roots.items() if known != name)
        for item in granted:
            for resource in item["Resource"]:
                pattern = re.escape(resource).replace(r"\*", ".*")
                assert not re.fullmatch(pattern, f"arn:aws:s3:::{other.removeprefix('s3://')}/stages/x/HEAD.json")
                assert not re.fullmatch(pattern, "arn:aws:s3:::lab-vit/shared/train-000000.tar")
        reading = [item for item in policies[0]["Statement"] if item["Sid"] == "Images"]
        assert reading[0]["Resource"] == ["arn:aws:s3:::lab-vit/shared/*"]
