"""All files that are made from a shape, by their paths."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from cluster.deploy import access, bucket, karpenter, kuberay, launcher, mlflow, names, redis, supervisor
from cluster.deploy.dockerfile import dockerfile
from cluster.deploy.names import Object
from cluster.errors import UserError

if TYPE_CHECKING:
    from yaml.nodes import ScalarNode

    from cluster.deploy.aws_shape import Aws
    from cluster.deploy.shape import Shape

Part = Literal["karpenter", "kuberay", "mlflow", "ray-up", "bucket", "docker"]
PARTS: tuple[Part, ...] = get_args(Part)
HERE = Path(__file__).parent
NOTE = "# Made by `patchline deploy render`: change the shape file, and make it again.\n"


def render(shape: Shape, only: Sequence[Part] = ()) -> dict[str, str]:
    """The files of these parts, of all that the shape has something to say about where none is named.

    Raises UserError where a part that is named has nothing to go by.
    """
    made = {
        "karpenter": _karpenter,
        "kuberay": _kuberay,
        "mlflow": _mlflow,
        "ray-up": _ray_up,
        "bucket": _bucket,
        "docker": _docker,
    }
    left_out = {"ray-up": shape.aws is None, "karpenter": shape.karpenter is None}
    wanted = only or [part for part in PARTS if not left_out.get(part)]
    return {f"{part}/{name}": text for part in wanted for name, text in made[part](shape).items()}


def example() -> str:
    """A shape file to begin with, with what its fields mean."""
    return (HERE / "example.yaml").read_text()


def write(files: dict[str, str], folder: Path) -> None:
    """Write rendered files below a folder; those that are there already are replaced. Raises UserError."""
    for name, text in files.items():
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            if path.suffix == ".sh":
                path.chmod(0o755)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}): name another folder by --to") from error


def as_yaml(objects: Sequence[Object]) -> str:
    """Documents of YAML, one after the other, in the order in which keys were given."""
    import yaml

    class Dumper(yaml.SafeDumper):
        # The same labels in two places are two mappings, not an anchor and its alias.
        def ignore_aliases(self, data: object) -> bool:
            return True

    # Scripts and files as they are, line by line.
    Dumper.add_representer(str, lambda dumper, text: dumper.represent_str(text) if "\n" not in text else _block(text))
    return NOTE + yaml.dump_all(objects, Dumper=Dumper, sort_keys=False, width=120, explicit_start=True)


def _block(text: str) -> ScalarNode:
    from yaml.nodes import ScalarNode

    return ScalarNode("tag:yaml.org,2002:str", text, style="|")


def job(shape: Shape, workflow: str, text: str) -> dict[str, str]:
    """The RayJob of a workflow, by its path. `text` is the workflow's file. Raises UserError where its name is long."""
    objects = kuberay.ray_job(shape, workflow.lower().replace("_", "-"), text)
    name = objects[-1]["metadata"]["name"]
    if len(name) > kuberay.LONGEST_JOB:
        raise UserError(
            f"'{name}' has {len(name)} letters, and KubeRay takes names of jobs of up to {kuberay.LONGEST_JOB}: "
            "shorten the cluster's name or the workflow's"
        )
    return {f"jobs/{name}.yaml": as_yaml(objects)}


def _karpenter(shape: Shape) -> dict[str, str]:
    group = karpenter.security_group(shape)
    return {
        "machines.yaml": as_yaml(karpenter.machines(shape)),
        "device-plugins.yaml": as_yaml([karpenter.device_plugins()]),
        "look.yaml": as_yaml([karpenter.test_pod(shape)]),
        **({"security-group.sh": _script(group)} if group else {}),
    }


def _kuberay(shape: Shape) -> dict[str, str]:
    first = [
        access.namespace(shape),
        access.service_account(shape),
        *access.network_policies(shape),
        access.disruption_budget(shape),
    ]
    return {
        "00-namespace.yaml": as_yaml(first),
        **({"10-redis.yaml": as_yaml(redis.redis(shape))} if shape.head.redis is None else {}),
        "30-ray.yaml": as_yaml([kuberay.ray_cluster(shape)]),
        "40-supervise.yaml": as_yaml([supervisor.supervisor(shape)]),
        "secrets.sh": _secrets(shape),
    }


def _mlflow(shape: Shape) -> dict[str, str]:
    return {} if shape.mlflow.address else {"20-mlflow.yaml": as_yaml(mlflow.mlflow(shape))}


def _ray_up(shape: Shape) -> dict[str, str]:
    return {"cluster.yaml": as_yaml([launcher.launcher(shape)])}


def _bucket(shape: Shape) -> dict[str, str]:
    documents = {
        "lifecycle": bucket.lifecycle(),
        "bucket-policy": bucket.bucket_policy(shape),
        "workers-policy": bucket.workers_policy(shape),
        "reader-policy": bucket.reader_policy(shape),
        **({} if shape.mlflow.address else {"mlflow-policy": bucket.mlflow_policy(shape)}),
        **(_of_machines(shape, shape.aws) if shape.aws else {}),
        "trust": bucket.trust(*(["ec2", "pods.eks"] if shape.aws else ["pods.eks"])),
    }
    scripts = {"apply.sh": bucket.commands(shape), "roles.sh": bucket.roles(shape)}
    return {
        **{f"{name}.json": _json(found) for name, found in documents.items()},
        **{name: _script(lines) for name, lines in scripts.items() if lines},
    }


def _script(lines: Sequence[str]) -> str:
    """Lines for AWS's command line as a script, which ends at the first one that fails."""
    # Else each answer waits in a pager.
    begin = ["#!/bin/sh", NOTE.strip(), "set -eu", "export AWS_PAGER=", 'cd "$(dirname "$0")"']
    return "\n".join([*begin, *lines]) + "\n"


def _of_machines(shape: Shape, aws: Aws) -> dict[str, Object]:
    """Policies of what `ray up` starts alone."""
    registry = bucket.registry_policy(shape.image)
    return {"head-policy": bucket.head_policy(aws), **({"registry-policy": registry} if registry else {})}


def _docker(shape: Shape) -> dict[str, str]:
    lock = (HERE / "docker/cuda.lock").read_text()
    return {"cpu.Dockerfile": dockerfile("cpu"), "cuda.Dockerfile": dockerfile("cuda"), "cuda.lock": lock}


def _secrets(shape: Shape) -> str:
    """Lines that make what Secrets hold, and give it to Kubernetes without a file or a command line that shows it."""
    wanted = {names.token_secret(shape): names.TOKEN_KEY}
    if shape.head.redis is None:
        wanted[names.redis_secret(shape)] = names.PASSWORD_KEY
    if shape.mlflow.address is None and shape.mlflow.database_secret is None:
        wanted[names.database_secret(shape)] = names.PASSWORD_KEY
    lines = []
    for secret, key in wanted.items():
        ours = ["kubectl", "--namespace", shape.namespace]
        there = f"{shlex.join([*ours, 'get', 'secret', secret])} >/dev/null 2>&1"
        made = f"{shlex.join([*ours, 'create', 'secret', 'generic', secret])} --from-file={key}=/dev/stdin"
        lines.append(f"{there} || openssl rand -hex 32 | tr -d '\\n' | {made}")
    return "\n".join(["#!/bin/sh", NOTE.strip(), "# What is there already stays.", "set -eu", *lines]) + "\n"


def _json(document: Object) -> str:
    return json.dumps(document, indent=2) + "\n"
