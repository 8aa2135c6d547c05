"""How a run is doing: progress while it works, status and goodput from its folder."""
