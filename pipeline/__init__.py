"""The durable runner: what runs, in which order, with which settings, and what has been done."""
