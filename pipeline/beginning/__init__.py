"""The first ten minutes: a workflow file for one's own images, and what is missing on a machine."""
