"""Trains the small student of gradients.py with a running average, and saves it after every step.

averages.py STAGE_FOLDER STEPS EXPERT_PARALLEL DEEPSPEED     from the newest checkpoint there is
"""

import sys
from pathlib import Path

import gradients
import torch
import torch.distributed as dist

from launcher.recipe import CheckpointConfig, OptimizerConfig, find_deepspeed_config
from launcher.run_folder import StageFolder
from launcher.training import checkpoint, parallel
from launcher.training.expert_parallel import spread_experts
from launcher.training.health.nonfinite_steps import NonfiniteSteps
from launcher.training.metrics import MetricAccumulator
from launcher.training.running_average import RunningAverage, state_buffers
from launcher.training.training_state import capture_state, restore_state

# Of the first updates fewer count: at 0.4 the fifth has reached it.
DECAY = 0.4


def train(folder: Path, num_steps: int, expert_parallel: int, deepspeed: str) -> None:
    parallel.start_processes(60)
    rank, world = dist.get_rank(), dist.get_world_size()
    recognizer, task = gradients.build()
    spread_experts(recognizer, expert_parallel, rank)
    lanes = range(rank, gradients.LANES, world)
    deepspeed_file = find_deepspeed_config(deepspeed)
    engine = parallel.build_engine(recognizer, OptimizerConfig(), deepspeed_file, len(lanes), "fp32")
    average = RunningAverage(engine, DECAY)
    stage, step = StageFolder(folder), 0
    saved = checkpoint.newest_intact(stage)
    if saved:
        restore_state(engine, saved, average=average)
        step = saved.step
    saver = checkpoint.Saver(stage, CheckpointConfig(keep_last=99), torch.device("cpu"))

    def save() -> None:
        state = capture_state(engine, step, MetricAccumulator(), NonfiniteSteps(), None, average=average)
        assert saver.start(state)
        assert saver.finish()

    if not saved:
        save()
    for _ in range(num_steps):
        gradients.train_step(engine, task, lanes)
        for _, buffer in state_buffers(engine.module):
            buffer.add_(0.1)
        step += 1
        average.update(step)
        save()


if __name__ == "__main__":
    train(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    dist.destroy_process_group()  # gloo's threads may abort a process that ends with them
