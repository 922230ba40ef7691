"""The shape file: what a cluster is to be, in one place. Everything under `cluster/deploy` is made from it.

Light: neither Kubernetes nor a cloud is asked anything. Sizes are in GB (10^9 bytes), times in seconds unless a name
says otherwise.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from cluster.deploy.aws_shape import Aws
from cluster.deploy.karpenter_shape import Karpenter
from cluster.deploy.network_shape import Network
from cluster.deploy.shape_part import Part
from cluster.errors import UserError
from cluster.shapes import GPUS

Label = Annotated[str, StringConstraints(pattern=r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$")]
"""What Kubernetes takes as a name, short enough for what is made of it."""
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
S3Address = Annotated[str, StringConstraints(pattern=r"^s3://[a-z0-9][a-z0-9.-]{2,62}(/[^/\s?#*]+)*$")]


class Gpus(Part):
    """Which GPUs, and how many a machine has."""

    model: str = Field(default="h100", description="one of the names that `plan --on` knows, without a number")
    per_node: int = Field(default=8, ge=1, le=16, description="GPUs of a machine")

    @field_validator("model")
    @classmethod
    def _known(cls, model: str) -> str:
        if model not in GPUS:
            raise UserError(f"got '{model}', expected one of {', '.join(GPUS)}")
        return model


class Toleration(Part):
    """A taint that pods may run beside, as Kubernetes has it."""

    key: str
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = "NoSchedule"


class Nodes(Part):
    """Machines of one kind, between `min` and `max` of them as work comes and goes."""

    min: int = Field(default=0, ge=0, description="machines that are there also without work")
    max: int = Field(default=1, ge=1, description="machines at most")
    cpus: int = Field(ge=1, description="cores of a pod: fewer than the machine's, for what Kubernetes itself needs")
    memory_gb: float = Field(gt=0, description="memory of a pod, with what it shares; less than the machine's")
    shared_memory_gb: float = Field(default=8, gt=0, description="of that, what processes share below /dev/shm")
    idle_minutes: float = Field(
        default=10, ge=1, description="a machine that has had no work for so long is given back"
    )
    notice_s: int = Field(
        default=100, ge=0, description="how long a machine's end is told ahead: training saves meanwhile"
    )
    selector: dict[str, str] = Field(default_factory=dict, description="labels of the machines in Kubernetes")
    tolerations: tuple[Toleration, ...] = Field(default=(), description="taints of the machines in Kubernetes")
    spot: bool = Field(default=False, description="whether they are spot machines, which are taken away")

    @model_validator(mode="after")
    def _check(self) -> Nodes:
        if self.min > self.max:
            raise UserError(f"min={self.min} is more than max={self.max}: lower min or raise max")
        if self.shared_memory_gb > self.memory_gb / 2:
            raise UserError(
                f"shared_memory_gb={self.shared_memory_gb:g} is more than half of memory_gb={self.memory_gb:g}, "
                f"which it is a part of: try shared_memory_gb={self.memory_gb / 4:g}"
            )
        return self


class Head(Part):
    """The machine that the cluster's own processes and the workflows' drivers run on."""

    cpus: int = Field(default=8, ge=1, description="cores")
    memory_gb: float = Field(default=32, ge=4, description="memory; a driver takes about 1 GB")
    redis_gb: int = Field(default=5, ge=1, description="disk of the Redis that brings the head's tables back")
    redis: str | None = Field(default=None, description="a Redis of one's own, HOST:PORT; else one is made")
    selector: dict[str, str] = Field(default_factory=dict, description="labels of its machine in Kubernetes")


class Cache(Part):
    """A disk on each machine for copies of shards."""

    size_gb: int = Field(default=500, ge=1, description="its size")
    mount: str = Field(default="/cache", pattern=r"^/[a-z0-9/_-]+$", description="where pods see it")
    storage_class: str | None = Field(
        default=None, description="a disk of this class for each pod; else the machine's own disk"
    )
    host_path: str | None = Field(
        default=None, pattern=r"^/", description="a folder of the machine that is such a disk already"
    )

    @model_validator(mode="after")
    def _check(self) -> Cache:
        if self.storage_class and self.host_path:
            raise UserError(f"storage_class={self.storage_class} and host_path={self.host_path}: give one of them")
        if self.mount.startswith(("/dev", "/tmp", "/home")):
            raise UserError(f"mount={self.mount}: pods have something there already: try /cache")
        return self


class Identity(Part):
    """As whom pods come to object storage. Keys are nowhere in this file."""

    kind: Literal["irsa", "pod-identity", "web-identity", "secret"] = Field(
        default="pod-identity",
        description="irsa and pod-identity: EKS gives pods the role; web-identity: any Kubernetes whose issuer AWS "
        "knows; secret: keys in a Secret, for other stores",
    )
    role: str | None = Field(
        default=None, pattern=r"^arn:aws[a-z-]*:iam::\d{12}:role/\S+$", description="the role's ARN"
    )
    secret: str | None = Field(
        default=None, description="Secret with a file `credentials`, as the AWS command line has it"
    )
    annotations: dict[str, str] = Field(
        default_factory=dict, description="of the service account, such as iam.gke.io/gcp-service-account"
    )

    @model_validator(mode="after")
    def _check(self) -> Identity:
        wanted = "secret" if self.kind == "secret" else "role"
        if getattr(self, wanted) is None:
            raise UserError(f"kind={self.kind} needs {wanted}: name it")
        return self


class Mlflow(Part):
    """A server of one's own, or one that is made, with PostgreSQL beside it."""

    address: str | None = Field(
        default=None, pattern=r"^https?://", description="of a server that is there; else one is made"
    )
    artifacts: S3Address | None = Field(
        default=None, description="where it keeps files; BUCKET/mlflow of the root if absent"
    )
    database_secret: str | None = Field(
        default=None, description="Secret whose `uri` is a managed database's; else one is made"
    )
    database_gb: int = Field(default=20, ge=1, description="disk of the database that is made")
    cpus: int = Field(default=2, ge=1, description="cores of the server")
    memory_gb: float = Field(default=4, ge=1, description="memory of the server")


class SecretKey(Part):
    """A value in a Secret of the namespace."""

    secret: str = Field(description="name of the Secret")
    key: str = Field(description="key in it")


class Shape(Part):
    """A cluster for patchline, on Kubernetes by KubeRay or on cloud machines by `ray up`."""

    name: Label = Field(description="of the cluster, and the beginning of what belongs to it")
    namespace: Label = Field(default="patchline", description="Kubernetes namespace; it is made")
    operator_namespace: Label = Field(
        default="kuberay-operator", description="namespace that the KubeRay operator runs in"
    )
    image: str = Field(
        pattern=r"^[a-z0-9][^\s@]*(:[\w.-]+|@sha256:[0-9a-f]{64})$", description="with its tag or digest"
    )
    pull_secret: str | None = Field(default=None, description="Secret for a registry that asks who one is")
    root: S3Address = Field(description="where everything is kept: s3://BUCKET/PREFIX")
    data: tuple[S3Address, ...] = Field(
        default=(), description="further places that images are read from, and nothing written"
    )
    region: str = Field(
        default="us-east-1", pattern=r"^[a-z0-9-]+$", description="of the bucket, and of machines by `ray up`"
    )
    endpoint: str | None = Field(default=None, pattern=r"^https?://", description="of another S3 than AWS's")
    gpus: Gpus = Field(default_factory=Gpus, description="GPUs of a machine")
    nodes: Nodes = Field(description="machines with GPUs")
    ingest: Nodes | None = Field(
        default=None, description="machines without, for ingestion; else those with GPUs do it"
    )
    head: Head = Field(default_factory=Head, description="the head")
    cache: Cache = Field(default_factory=Cache, description="disk for shards")
    network: Network = Field(default_factory=Network, description="between machines")
    identity: Identity = Field(description="who pods are for the bucket")
    mlflow: Mlflow = Field(default_factory=Mlflow, description="what training is shown by")
    secrets: dict[Variable, SecretKey] = Field(
        default_factory=dict,
        description="variables of the cluster's and the supervisor's pods that come from Secrets, such as "
        "MLFLOW_TRACKING_PASSWORD for a server of one's own; by `ray up` they come from the file `environment` "
        "in aws.token_folder",
    )
    karpenter: Karpenter | None = Field(default=None, description="machines that Karpenter brings to a cluster of EKS")
    aws: Aws | None = Field(default=None, description="what `ray up` has to know of AWS")

    @model_validator(mode="after")
    def _check(self) -> Shape:
        if "/" not in self.root.removeprefix("s3://"):
            raise UserError(f"root={self.root}: expected a folder in the bucket too, such as {self.root}/vit")
        if f"{self.artifacts}/".startswith(f"{self.root}/") or f"{self.root}/".startswith(f"{self.artifacts}/"):
            raise UserError(
                f"mlflow.artifacts={self.artifacts} and root={self.root}: one lies in the other, and `patchline gc` "
                "removes what it does not know: name another folder"
            )
        return self

    @property
    def bucket(self) -> str:
        """Name of the root's bucket."""
        return self.root.removeprefix("s3://").partition("/")[0]

    @property
    def artifacts(self) -> str:
        """Where MLflow keeps its files."""
        return self.mlflow.artifacts or f"s3://{self.bucket}/mlflow"

    @property
    def most_gpus(self) -> int:
        """GPUs when all machines are there."""
        return self.nodes.max * self.gpus.per_node
