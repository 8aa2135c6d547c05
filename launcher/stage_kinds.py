"""The kinds of stages that train a model, for what must not wait for a recipe to be imported."""

TRAINING_KINDS = ("self_supervised", "pretrain", "distill")
