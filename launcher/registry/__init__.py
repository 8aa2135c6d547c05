"""Finished models under names of a team: what runs have left, and which model a name stands for."""
