"""Images in AWS's registry, who pulls from which has to log in: on machines of `ray up`; Kubernetes does it itself."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cluster.deploy.names import Object

ADDRESS = re.compile(
    r"(?P<host>(?P<account>\d{12})\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.amazonaws\.com)/(?P<name>[^:@]+)"
)
PULL = ("ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer")


@dataclass(frozen=True)
class Repository:
    """A repository of AWS's registry."""

    host: str
    account: str
    region: str
    name: str

    def login(self) -> str:
        """A line of shell after which the machine's engine may pull, for twelve hours."""
        password = f"aws ecr get-login-password --region {self.region}"
        return f"{password} | docker login --username AWS --password-stdin {self.host}"

    def statements(self) -> list[Object]:
        """What a role needs for that, as statements of a policy."""
        arn = f"arn:aws:ecr:{self.region}:{self.account}:repository/{self.name}"
        return [
            {"Sid": "Login", "Effect": "Allow", "Action": ["ecr:GetAuthorizationToken"], "Resource": ["*"]},
            {"Sid": "Pull", "Effect": "Allow", "Action": list(PULL), "Resource": [arn]},
        ]


def repository(image: str) -> Repository | None:
    """The repository that an image lies in, where that is AWS's."""
    match = ADDRESS.match(image)
    return Repository(**match.groupdict()) if match else None
