"""A page over many runs, as they go on: read from their folders alone, and never written to."""
