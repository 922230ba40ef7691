"""Machines and bytes: Ray, S3, local servers. Knows nothing of images or models."""
