# patchline for machines with NVIDIA GPUs; a driver of 580 or newer. Made by cluster/deploy/dockerfile.py.
# docker build -f cluster/deploy/docker/cuda.Dockerfile -t REGISTRY/patchline:0.1.0-cuda .
FROM python:3.11.14-slim-bookworm

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# Security fixes of these come with each build; what computes is pinned below.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        gcc \
        libc6-dev \
        libjpeg62-turbo-dev \
        openssh-client \
        rsync \
        tini \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/patchline
# Into the system's own Python: KubeRay can start Ray in a login shell, which finds no others.
COPY cluster/deploy/docker/cuda.lock ./
RUN pip install --no-cache-dir --require-hashes -r cuda.lock

# Amazon's network between machines, for p5 and its kin: docker build --build-arg EFA_VERSION=…, a version of the
# installer that AWS's page on EFA names.
ARG EFA_VERSION=
# hadolint ignore=DL3003,DL3008
RUN if [ -n "$EFA_VERSION" ]; then \
        apt-get update && apt-get install -y --no-install-recommends curl \
        && curl -fsSL "https://efa-installer.amazonaws.com/aws-efa-installer-$EFA_VERSION.tar.gz" -o efa.tar.gz \
        && tar -xzf efa.tar.gz && cd aws-efa-installer \
        && ./efa_installer.sh -y -g --skip-kmod --skip-limit-conf --no-verify \
        && cd .. && rm -rf aws-efa-installer efa.tar.gz /var/lib/apt/lists/*; \
    fi

COPY pyproject.toml README.md LICENSE ./
COPY cluster cluster
COPY stages stages
COPY pipeline pipeline
RUN pip install --no-cache-dir --no-deps .

RUN useradd --create-home --uid 1000 patchline \
    && install -d -o patchline -g patchline -m 700 /home/patchline/.ray \
    && install -d -o patchline -g patchline /cache
# By number, since Kubernetes cannot tell otherwise that it is not root.
USER 1000
WORKDIR /home/patchline
# Ray's launcher looks for HOME in the image.
ENV HOME=/home/patchline PYTHONUNBUFFERED=1 DS_BUILD_OPS=0
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
ENTRYPOINT ["tini", "--"]
CMD ["patchline", "--help"]
