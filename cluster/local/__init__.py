"""The local stack: a Ray head, an S3 server and an MLflow server on this machine, bound to loopback."""

from cluster.local.stack import Stack, down, load, missing, up

__all__ = ["Stack", "down", "load", "missing", "up"]
