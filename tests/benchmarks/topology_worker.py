"""One process of the runs that topology.py compares: `topology_worker.py RUN_FOLDER...`, trained one after the other.

Leaves in each run folder, beside what training leaves, `gradients-RANK.pt`: the first step's gradients before clipping
as {name: (where this process's part starts in the flattened whole, gradient)}. In a run folder with a file
`reverse-lanes` the lanes of each step are run in reverse.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_grad

from launcher.processes.heartbeat import Heartbeat
from launcher.processes.stop_request import StopRequest
from launcher.recipe import load_recipe
from launcher.run_folder import RunFolder
from launcher.stages.context import StageContext
from launcher.training import parallel
from launcher.training.fragments import local_offsets
from launcher.training.setup import build_trainer
from launcher.training.trainer import Trainer

STAGE = "student"
REVERSE_LANES = "reverse-lanes"


def main(folders: list[Path]) -> None:
    torch.set_num_threads(1)
    device = parallel.start_processes(timeout_s=120)
    rank = dist.get_rank()
    for folder in folders:
        run = RunFolder(folder)
        recipe = load_recipe(run.recipe_file)
        heartbeat = Heartbeat(run.stage(STAGE), rank)
        trainer = build_trainer(StageContext.training(recipe, run, STAGE), heartbeat, device, StopRequest())
        if (folder / REVERSE_LANES).exists():
            reverse_lanes(trainer)
        keep_first_gradients(trainer, folder / f"gradients-{rank}.pt")
        trainer.run()
        trainer.log.close(timeout_s=20)
        trainer.engine.destroy()
    dist.barrier()


def reverse_lanes(trainer: Trainer) -> None:
    steps = trainer.inputs.steps
    trainer.inputs.steps = lambda start, stop: (batches[::-1] for batches in steps(start, stop))


def keep_first_gradients(trainer: Trainer, file: Path) -> None:
    """Write them where the processes agree on the step: all lanes have run backward, nothing is updated or clipped."""
    agree = trainer.agree

    def agree_and_keep(*arguments):
        if trainer.step == 0:
            starts = local_offsets(trainer.engine.module)
            gradients = {
                name: (starts[name], safe_get_full_grad(parameter))
                for name, parameter in trainer.engine.module.named_parameters()
            }
            torch.save(gradients, file)
        return agree(*arguments)

    trainer.agree = agree_and_keep


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
    sys.stdout.flush()
    os._exit(0)  # the loaders' threads must not keep a finished process alive
