"""Tools for whole sets of shards: what is wrong with them, what is in them, and new sets made of them.

Used through `verify` (verification.py), `stats` (statistics.py), the functions of rewriting.py, and play.py.
"""
