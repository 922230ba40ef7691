"""The commands of `patchline`, by what they are about. Each parses and prints; the work is in `pipeline.api`."""
