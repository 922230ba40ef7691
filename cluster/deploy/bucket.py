"""Settings of the bucket, and who may do what in it. Documents for AWS's command line; boto3 is not asked."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from cluster.deploy.names import Object
from cluster.deploy.registry import repository

if TYPE_CHECKING:
    from cluster.deploy.aws_shape import Aws
    from cluster.deploy.shape import Shape

VERSION = "2012-10-17"
"""Of the language of policies, not of ours."""
READ = ("s3:GetObject",)
WRITE = ("s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload")
"""What `cluster.storage.s3` asks for: the parts of a large object and its last step are PutObject too."""
UNFINISHED_DAYS, OLD_DAYS = 7, 7
"""Parts that a killed process has left, and versions that were replaced, are kept so long."""


def lifecycle() -> Object:
    """Rules of the bucket: what a killed upload has left goes, and so do old versions where they are kept at all.

    HEAD.json is replaced with every renewal of a lease, so that a bucket with versions grows without an end otherwise.
    """
    unfinished = {"AbortIncompleteMultipartUpload": {"DaysAfterInitiation": UNFINISHED_DAYS}}
    old = {"NoncurrentVersionExpiration": {"NoncurrentDays": OLD_DAYS}}
    everything = {"Filter": {"Prefix": ""}, "Status": "Enabled"}
    return {"Rules": [{"ID": "unfinished-uploads", **everything, **unfinished}, {"ID": "old", **everything, **old}]}


def bucket_policy(shape: Shape) -> Object:
    """What holds for everybody: no request without TLS."""
    arn = _arn(f"s3://{shape.bucket}")
    statement = {
        "Sid": "EncryptedConnectionsAlone",
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:*",
        "Resource": [arn, f"{arn}/*"],
        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
    }
    return {"Version": VERSION, "Statement": [statement]}


def workers_policy(shape: Shape) -> Object:
    """What drivers, workers and the supervisor may: everything below the root, and to read the images."""
    return _policy(
        _listing("List", shape.root, *shape.data),
        _statement("Root", WRITE, f"{_arn(shape.root)}/*"),
        *([_statement("Images", READ, *(f"{_arn(place)}/*" for place in shape.data))] if shape.data else []),
    )


def reader_policy(shape: Shape) -> Object:
    """What people may who look: `list`, `status`, `logs`, `get-output`, `audit`."""
    return _policy(_listing("List", shape.root), _statement("Root", READ, f"{_arn(shape.root)}/*"))


def mlflow_policy(shape: Shape) -> Object:
    """What MLflow's server may, which passes files on to everybody else."""
    return _policy(_listing("List", shape.artifacts), _statement("Files", WRITE, f"{_arn(shape.artifacts)}/*"))


def trust(*services: str) -> Object:
    """Which services of AWS give the role to machines or pods: ec2, pods.eks."""
    statement = {
        "Effect": "Allow",
        "Principal": {"Service": [f"{name}.amazonaws.com" for name in services]},
        "Action": ["sts:AssumeRole", "sts:TagSession"],
    }
    return {"Version": VERSION, "Statement": [statement]}


def commands(shape: Shape) -> list[str]:
    """Lines of shell that make the bucket, where it is not there yet, and set it up."""
    bucket, endpoint = ["--bucket", shape.bucket], ["--endpoint-url", shape.endpoint] if shape.endpoint else []
    # The first region is the only one that must not be named.
    elsewhere = shape.region != "us-east-1" and not shape.endpoint
    place = ["--create-bucket-configuration", f"LocationConstraint={shape.region}"] if elsewhere else []
    private = "BlockPublicAcls=true,IgnorePublicAcls=true,BlockPublicPolicy=true,RestrictPublicBuckets=true"
    calls = [
        ["create-bucket", *bucket, "--region", shape.region, *place],
        ["put-public-access-block", *bucket, "--public-access-block-configuration", private],
        ["put-bucket-lifecycle-configuration", *bucket, "--lifecycle-configuration", "file://lifecycle.json"],
        ["put-bucket-policy", *bucket, "--policy", "file://bucket-policy.json"],
    ]
    made, *settings = [shlex.join(["aws", "s3api", *call, *endpoint]) for call in calls]
    return [_unless(shlex.join(["aws", "s3api", "head-bucket", *bucket, *endpoint]), made), *settings]


def roles(shape: Shape) -> list[str]:
    """Lines of shell that make the roles which the shape names, with their rights. Each profile has a role of its name.

    Given again, they leave the roles that are there, and renew their rights. EKS's older way (irsa) and tokens of other
    issuers need to know the issuer: these roles are made by hand.
    """
    pods = [shape.identity.role] if shape.identity.kind == "pod-identity" and shape.identity.role else []
    machines = [shape.aws.profile, shape.aws.head_profile] if shape.aws else []
    lines = []
    for arn in dict.fromkeys([*pods, *machines]):
        own = ["--role-name", arn.rpartition("/")[2]]
        make = _iam("create-role", *own, "--assume-role-policy-document", "file://trust.json")
        lines.append(_unless(_iam("get-role", *own), make))
        for right in _rights(shape, arn):
            named = ["--policy-name", right, "--policy-document", f"file://{right}-policy.json"]
            lines.append(_iam("put-role-policy", *own, *named))
        lines += _profile(own) if arn in machines else []
    return lines


def _rights(shape: Shape, arn: str) -> list[str]:
    """Names of the policies of a role, or of a profile's role."""
    rights = ["workers", *([] if shape.mlflow.address else ["mlflow"])]
    if shape.aws and arn in (shape.aws.profile, shape.aws.head_profile) and repository(shape.image):
        rights.append("registry")
    if shape.aws and arn == shape.aws.head_profile:
        rights.append("head")
    return rights


def _profile(role: list[str]) -> list[str]:
    """Lines that make a role's instance profile, and put the role into it."""
    profile = ["--instance-profile-name", role[-1]]
    look = _iam("get-instance-profile", *profile)
    roles = _iam("get-instance-profile", *profile, "--query", "InstanceProfile.Roles[].RoleName", "--output", "text")
    return [
        _unless(look, _iam("create-instance-profile", *profile)),
        f"{roles} | grep -q . || {_iam('add-role-to-instance-profile', *profile, *role)}",
    ]


def _iam(*call: str) -> str:
    return shlex.join(["aws", "iam", *call])


def _unless(look: str, make: str) -> str:
    """A line that makes what is not there yet."""
    return f"{look} >/dev/null 2>&1 || {make}"


def head_policy(aws: Aws) -> Object:
    """What the head of `ray up` may besides the workers' rights: start, find and end this cluster's machines."""
    look = ["Instances", "InstanceTypes", "Images", "KeyPairs", "SecurityGroups", "Subnets", "AvailabilityZones"]
    profiles = sorted({aws.profile, aws.head_profile})
    passed = [profile.replace(":instance-profile/", ":role/") for profile in profiles]
    machines = ["ec2:RunInstances", "ec2:TerminateInstances", "ec2:StopInstances", "ec2:CreateTags", "ec2:DeleteTags"]
    return _policy(
        _statement("Look", tuple(f"ec2:Describe{what}" for what in look), "*"),
        _statement("Machines", tuple(machines), "*"),
        _statement("Roles", ("iam:PassRole",), *passed),
        _statement("Profiles", ("iam:GetInstanceProfile",), *profiles),
    )


def registry_policy(image: str) -> Object | None:
    """What machines of `ray up` may who pull the image from AWS's registry; None where it lies elsewhere."""
    found = repository(image)
    return _policy(*found.statements()) if found else None


def _policy(*statements: Object) -> Object:
    return {"Version": VERSION, "Statement": list(statements)}


def _statement(sid: str, actions: tuple[str, ...], *resources: str) -> Object:
    return {"Sid": sid, "Effect": "Allow", "Action": list(actions), "Resource": list(resources)}


def _listing(sid: str, *places: str) -> Object:
    """Listing whole buckets: limited to a prefix, S3 would answer 403 in place of 404 to whoever asks for a key that
    is not there, since such a question names no prefix.
    """
    buckets = dict.fromkeys(place.removeprefix("s3://").partition("/")[0] for place in places)
    return _statement(sid, ("s3:ListBucket",), *(_arn(f"s3://{bucket}") for bucket in buckets))


def _arn(address: str) -> str:
    return f"arn:aws:s3:::{address.removeprefix('s3://')}"
