"""The part of the shape file that is about the network between machines."""

from __future__ import annotations

import ipaddress
import re

from pydantic import Field, field_validator, model_validator

from cluster.deploy.shape_part import Part
from cluster.errors import UserError

COMMUNICATION = re.compile(r"(NCCL|GLOO|FI|RDMAV|UCX|OFI|TORCH_NCCL)_[A-Z0-9_]+")
"""Variables that say how GPUs of different machines talk to each other."""


class Network(Part):
    """How GPUs of different machines reach each other."""

    interface: str | None = Field(
        default=None, description="network interface for NCCL and Gloo, such as eth0, or ^docker0,lo"
    )
    infiniband: str | None = Field(default=None, description="InfiniBand or RoCE devices for NCCL, such as mlx5")
    variables: dict[str, str] = Field(default_factory=dict, description="further variables of NCCL, Gloo and libfabric")
    resources: dict[str, int | str] = Field(
        default_factory=dict,
        description="devices that a GPU pod asks Kubernetes for, such as vpc.amazonaws.com/efa: 32",
    )
    host_network: bool = Field(
        default=False, description="whether GPU pods use their machine's network without a layer between"
    )
    node_cidrs: tuple[str, ...] = Field(
        default=(),
        description="addresses of the machines, such as 10.0.0.0/16: with host_network, who may speak to Ray's pods "
        "besides pods",
    )

    @field_validator("variables")
    @classmethod
    def _of_communication(cls, variables: dict[str, str]) -> dict[str, str]:
        for name in variables:
            if not COMMUNICATION.fullmatch(name):
                raise UserError(f"{name} is no variable of NCCL, Gloo, libfabric or UCX: set it in the image")
        return variables

    @field_validator("node_cidrs")
    @classmethod
    def _ranges(cls, ranges: tuple[str, ...]) -> tuple[str, ...]:
        for found in ranges:
            try:
                ipaddress.ip_network(found)
            except ValueError as error:
                raise UserError(f"{error}: expected a range of addresses, such as 10.0.0.0/16") from None
        return ranges

    @model_validator(mode="after")
    def _check(self) -> Network:
        if self.host_network and not self.node_cidrs:
            raise UserError(
                "host_network=true needs node_cidrs: GPU pods then come with their machines' addresses, and Ray's head "
                "takes none but pods' otherwise: give the machines' subnets, such as node_cidrs: [10.0.0.0/16]"
            )
        if self.node_cidrs and not self.host_network:
            raise UserError(
                f"node_cidrs={', '.join(self.node_cidrs)} without host_network would let whoever is on a machine speak "
                "to Ray's pods, and nobody needs it: leave it out, or give host_network: true"
            )
        return self
