"""Mixtures of experts: the routers, the experts, and the rows that each expert multiplies."""
