"""What the processes of a training stage run: tasks, the loop, parallelism and checkpoints."""
