"""The part of the shape file that is about machines of AWS, which `ray up` starts."""

from __future__ import annotations

from pydantic import Field, model_validator

from cluster.deploy.shape_part import Part
from cluster.errors import UserError

PROFILE = r"^arn:aws[a-z-]*:iam::\d{12}:instance-profile/\S+$"


class Aws(Part):
    """Machines of EC2. Their role is an instance profile; keys are nowhere in this file."""

    zone: str = Field(pattern=r"^[a-z0-9-]+[a-z]$", description="availability zone of all machines, such as us-east-1a")
    machine: str = Field(default="p5.48xlarge", description="instance type with GPUs")
    head_machine: str = Field(default="m7i.2xlarge", description="instance type of the head")
    ingest_machine: str = Field(default="m7i.8xlarge", description="instance type of machines for ingestion")
    image_id: str = Field(pattern=r"^ami-[0-9a-f]{8,17}$", description="AMI with NVIDIA's driver and Docker")
    ssh_user: str = Field(default="ubuntu", description="the AMI's user")
    profile: str = Field(pattern=PROFILE, description="instance profile of machines that work, for the bucket")
    head_profile: str = Field(pattern=PROFILE, description="of the head, which also starts and ends machines")
    subnet: str | None = Field(
        default=None, pattern=r"^subnet-[0-9a-f]+$", description="subnet; one of the zone if absent"
    )
    security_groups: tuple[str, ...] = Field(default=(), description="security groups; Ray makes one if absent")
    placement_group: str | None = Field(default=None, description="cluster placement group of the machines with GPUs")
    reservation: str | None = Field(
        default=None, pattern=r"^cr-[0-9a-f]+$", description="capacity reservation or block"
    )
    capacity_block: bool = Field(default=False, description="whether the reservation is a capacity block for ML")
    efa: int = Field(default=0, ge=0, le=32, description="EFA interfaces of a machine with GPUs: 32 of p5.48xlarge")
    disk_gb: int = Field(default=200, ge=50, description="root disk of each machine, for images and logs")
    internal: bool = Field(
        default=False, description="whether machines have no public address, and one's own is in their network"
    )
    token_folder: str = Field(
        default="~/.patchline/ray",
        pattern=r"^[\w./~-]+$",
        description="folder of one's own machine; in it auth_token, the token, and with `secrets` a file environment "
        "with a line NAME=value for each",
    )

    @model_validator(mode="after")
    def _check(self) -> Aws:
        if self.efa and not (self.subnet and self.security_groups):
            raise UserError(
                f"efa={self.efa} needs subnet and security_groups: interfaces are asked for one by one, and the "
                "security group has to let its members talk to each other"
            )
        if self.capacity_block and not self.reservation:
            raise UserError("capacity_block=true needs reservation: the id of the block, which begins with cr-")
        return self
