"""The step of gradients.py with every option of sharing and experts: `expert_options.py OUT SCOPE DEEPSPEED`.

Experts are spread over all processes. SCOPE is that of the routers.
"""

import os
import sys
from pathlib import Path

import gradients

from model.recognizer import RecognizerConfig


def configure(scope: str) -> None:
    """Let gradients.py build a student with all options, whose losses weigh them all."""
    experts = {
        "count": 4,
        "placement": "both",
        "router": {"per_frame": 2, "scope": scope},
        "balance": "first_choice",
        "balance_scope": "group",
        "capacity_factor": 0.8,
        "residual": True,
        "initial": "upcycled",
        "initial_noise": 0.5,
    }
    shared = {"groups": 1, "private_head": 1, "private_tail": 1, "norms": "group", "experts": experts}
    values = gradients.CONFIG.model_dump()
    gradients.CONFIG = RecognizerConfig.model_validate(values | {"encoder": values["encoder"] | shared})
    gradients.OBJECTIVE = gradients.OBJECTIVE.model_copy(update={"sparsity_weight": 0.5})


if __name__ == "__main__":
    configure(sys.argv[2])
    gradients.main(Path(sys.argv[1]), int(os.environ["WORLD_SIZE"]), sys.argv[3])
