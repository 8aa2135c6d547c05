"""Texts: the rules for transcripts, the tokens they are cut into, and n-gram models of them."""
