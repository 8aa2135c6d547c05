"""Schedulers that others wrote, and a run as the unit of work that they start, stop and start again."""
