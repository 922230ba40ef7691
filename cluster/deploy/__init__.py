"""Clusters to run on: what Kubernetes, Ray's launcher and AWS are given, made from one shape file."""
