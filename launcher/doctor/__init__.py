"""What `chorus doctor --hostfile` finds out about the hosts of a run."""
