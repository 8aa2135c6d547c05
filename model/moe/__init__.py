"""Mixtures of experts: the router, the experts, and the rows that each expert gets."""
