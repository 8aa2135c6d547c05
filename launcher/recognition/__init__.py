"""Finished models at work: opened, searched, streamed, evaluated."""
