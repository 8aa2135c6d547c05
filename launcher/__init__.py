"""What the user starts: the command line, recipes, the pipeline of stages, and the processes that train."""
