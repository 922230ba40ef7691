"""One page about a workflow: what came out, how it went, what it cost, and how to do it again."""
