"""The learning rate as a function of the step alone, so that resuming needs no state."""

import math

from launcher.recipe import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Learning rate of the update that turns `step` (from 0) into step + 1, of `total_steps` in all."""
    if step < config.warmup_steps:
        # step + 1: the first update already moves the weights.
        return config.peak_learning_rate * (step + 1) / config.warmup_steps

    # Not 0 where the warm-up is as long as the stage.
    steps_after_warmup = max(total_steps - config.warmup_steps, 1)
    done = (step - config.warmup_steps) / steps_after_warmup
    match config.schedule:
        case "inverse_square_root":
            factor = math.sqrt(config.warmup_steps / (step + 1))
        case "tri_stage":
            # At the peak for the first half of what follows the warm-up, then exponential decay.
            factor = config.final_ratio ** max(2 * done - 1, 0.0)
        case "cosine":
            factor = config.final_ratio + (1 - config.final_ratio) * 0.5 * (1 + math.cos(math.pi * done))
    return config.peak_learning_rate * factor
