"""The part of the shape file that is about machines that Karpenter brings to a cluster of EKS."""

from __future__ import annotations

from pydantic import Field, model_validator

from cluster.deploy.shape_part import Part
from cluster.errors import UserError

EFA = "vpc.amazonaws.com/efa"
"""Name by which Kubernetes knows EFA interfaces: Karpenter gives a machine all of them where a pod asks for one."""


class Karpenter(Part):
    """Machines of EC2 for an EKS cluster, by Karpenter."""

    cluster: str = Field(pattern=r"^[0-9A-Za-z][0-9A-Za-z_-]{0,99}$", description="name of the EKS cluster")
    role: str | None = Field(
        default=None,
        pattern=r"^[\w+=,.@-]+$",
        description="name of the machines' role; KarpenterNodeRole-CLUSTER, of Karpenter's own template, if absent",
    )
    machine: str = Field(default="p5.48xlarge", description="instance type with GPUs")
    ingest_machine: str = Field(default="m7i.8xlarge", description="instance type of machines for ingestion")
    zone: str | None = Field(
        default=None, pattern=r"^[a-z0-9-]+[a-z]$", description="availability zone of the GPUs: EFA stays within one"
    )
    image: str = Field(
        default="al2023@latest",
        pattern=r"^al2023@(latest|v\d{8})$",
        description="EKS's image with NVIDIA's driver; al2023@v20260801 pins one, so that machines stay alike",
    )
    subnets: tuple[str, ...] = Field(
        default=(), description="ids; the subnets with the tag karpenter.sh/discovery: CLUSTER if absent"
    )
    placement_group: str | None = Field(default=None, description="cluster placement group of the machines with GPUs")
    reservation: str | None = Field(
        default=None, pattern=r"^cr-[0-9a-f]+$", description="capacity reservation or block of the GPUs"
    )
    capacity_block: bool = Field(default=False, description="whether the reservation is a capacity block for ML")
    disk_gb: int = Field(default=200, ge=50, description="root disk of each machine, in GiB")

    @model_validator(mode="after")
    def _check(self) -> Karpenter:
        if self.capacity_block and not self.reservation:
            raise UserError("capacity_block=true needs reservation: the id of the block, which begins with cr-")
        return self

    @property
    def node_role(self) -> str:
        """Name of the machines' role."""
        return self.role or f"KarpenterNodeRole-{self.cluster}"
