"""The stages of a run: what there is to do, what is done, and what they leave."""
