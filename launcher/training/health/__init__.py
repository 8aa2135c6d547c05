"""What can go wrong with a training that still runs: losses that jump or are not finite, routers that collapse."""
