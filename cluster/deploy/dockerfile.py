"""The images' Dockerfiles, which differ in torch's build alone. `docker/` has them as they are made here."""

from __future__ import annotations

from typing import Literal

Build = Literal["cpu", "cuda"]
BASE = "python:3.11.14-slim-bookworm"
"""torch's wheels bring CUDA's libraries along; of the machine they need its driver alone. So NVIDIA's own images, which
have these libraries again, would only be larger."""
PACKAGES = (
    # For the helper in C that decodes crops of JPEGs.
    *("gcc", "libc6-dev", "libjpeg62-turbo-dev"),
    # For Ray's launcher: files into the container, and from the head to its machines.
    *("openssh-client", "rsync"),
    # The first process, so that processes that have lost their parents are not left over.
    "tini",
)
TITLES: dict[Build, str] = {
    "cpu": "machines without GPUs",
    "cuda": "machines with NVIDIA GPUs; a driver of 580 or newer",
}
INSTALL: dict[Build, str] = {
    "cpu": """\
COPY constraints.txt pyproject.toml ./
COPY tools/requirements.py tools/
RUN python tools/requirements.py deploy >requirements.txt \\
    && pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu \\
        "$(grep '^torch==' constraints.txt)" \\
    && pip install --no-cache-dir -c constraints.txt -r requirements.txt""",
    "cuda": """\
COPY cluster/deploy/docker/cuda.lock ./
RUN pip install --no-cache-dir --require-hashes -r cuda.lock""",
}
EFA = """
# Amazon's network between machines, for p5 and its kin: docker build --build-arg EFA_VERSION=…, a version of the
# installer that AWS's page on EFA names.
ARG EFA_VERSION=
# hadolint ignore=DL3003,DL3008
RUN if [ -n "$EFA_VERSION" ]; then \\
        apt-get update && apt-get install -y --no-install-recommends curl \\
        && curl -fsSL "https://efa-installer.amazonaws.com/aws-efa-installer-$EFA_VERSION.tar.gz" -o efa.tar.gz \\
        && tar -xzf efa.tar.gz && cd aws-efa-installer \\
        && ./efa_installer.sh -y -g --skip-kmod --skip-limit-conf --no-verify \\
        && cd .. && rm -rf aws-efa-installer efa.tar.gz /var/lib/apt/lists/*; \\
    fi
"""


def dockerfile(build: Build) -> str:
    """The Dockerfile of an image; the folder that it is built in is the repository's own."""
    lists = " \\\n        ".join(sorted(PACKAGES))
    driver = "\nENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility" if build == "cuda" else ""
    return f"""\
# patchline for {TITLES[build]}. Made by cluster/deploy/dockerfile.py.
# docker build -f cluster/deploy/docker/{build}.Dockerfile -t REGISTRY/patchline:0.1.0-{build} .
FROM {BASE}

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# Security fixes of these come with each build; what computes is pinned below.
# hadolint ignore=DL3008
RUN apt-get update \\
    && apt-get install -y --no-install-recommends \\
        {lists} \\
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/patchline
# Into the system's own Python: KubeRay can start Ray in a login shell, which finds no others.
{INSTALL[build]}
{EFA if build == "cuda" else ""}
COPY pyproject.toml README.md LICENSE ./
COPY cluster cluster
COPY stages stages
COPY pipeline pipeline
RUN pip install --no-cache-dir --no-deps .

RUN useradd --create-home --uid 1000 patchline \\
    && install -d -o patchline -g patchline -m 700 /home/patchline/.ray \\
    && install -d -o patchline -g patchline /cache
# By number, since Kubernetes cannot tell otherwise that it is not root.
USER 1000
WORKDIR /home/patchline
# Ray's launcher looks for HOME in the image.
ENV HOME=/home/patchline PYTHONUNBUFFERED=1 DS_BUILD_OPS=0{driver}
ENTRYPOINT ["tini", "--"]
CMD ["patchline", "--help"]
"""
