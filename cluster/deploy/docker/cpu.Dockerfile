# patchline for machines without GPUs. Made by cluster/deploy/dockerfile.py.
# docker build -f cluster/deploy/docker/cpu.Dockerfile -t REGISTRY/patchline:0.1.0-cpu .
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
COPY constraints.txt pyproject.toml ./
COPY tools/requirements.py tools/
RUN python tools/requirements.py deploy >requirements.txt \
    && pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu \
        "$(grep '^torch==' constraints.txt)" \
    && pip install --no-cache-dir -c constraints.txt -r requirements.txt

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
ENTRYPOINT ["tini", "--"]
CMD ["patchline", "--help"]
