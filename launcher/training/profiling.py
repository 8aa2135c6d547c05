"""What a training step does with its time: a profile of some steps, and the share of the device's peak that is used."""

import gc
import logging
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from launcher.devices import accelerator
from launcher.processes.start_profile import start_profile

logger = logging.getLogger(__name__)

# Dense bf16 matrix products per second as the makers state them, by a part of the device's name. Without an entry there
# is no utilisation: a guessed peak would make a guessed share.
PEAK_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "V100": 125e12,
}
# Collecting garbage in the middle of a step stalls one process, and all others wait for it in the next collective. So
# every process collects after the same steps and at no other moment.
COLLECT_EVERY_STEPS = 50


def peak_flops(device: torch.device) -> float | None:
    """FLOP/s of the device in dense bf16 products, None where its maker states none that is known here."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    for part, flops in PEAK_FLOPS.items():
        if part in name:
            return flops
    return None


class GarbageCollection:
    """Takes garbage collection out of the steps, and runs it after every COLLECT_EVERY_STEPS of them."""

    def __enter__(self) -> "GarbageCollection":
        # What was built before training lives to its end; frozen, it is not looked through again and again.
        gc.collect()
        gc.freeze()
        gc.disable()
        return self

    def __exit__(self, *exception: object) -> None:
        gc.enable()
        gc.unfreeze()

    def after_step(self, step: int) -> None:
        if step % COLLECT_EVERY_STEPS == 0:
            gc.collect(1)


class StepProfiler:
    """Profiles the steps of [first, stop) and leaves one Chrome trace per process in a folder; with `start` also what
    each process did until the end of its first step.

    Open a trace with chrome://tracing or ui.perfetto.dev.
    """

    def __init__(self, steps: range, folder: Path, rank: int, start: bool = False):
        self._steps = steps
        self._start_file = folder / f"start-{rank:02d}.json"
        self._profiles_start = start
        self._file = folder / f"rank-{rank:02d}.json"
        self._profile: profile | None = None

    def before_step(self, step: int) -> None:
        if self._profiles_start:
            start_profile.mark("first batch")
        # A stage that resumes inside of the range is profiled from there.
        if self._profile is None and step in self._steps:
            activities = [ProfilerActivity.CPU]
            if accelerator() == "cuda":
                activities.append(ProfilerActivity.CUDA)
            self._profile = profile(activities=activities, record_shapes=True)
            self._profile.start()

    def after_step(self, step: int) -> None:
        """`step` counts the steps done."""
        if self._profiles_start:
            start_profile.mark("first step")
            start_profile.write(self._start_file)
            self._profiles_start = False
        if self._profile is not None and step not in self._steps:
            self.finish()

    def finish(self) -> None:
        """Write what was recorded; nothing when there was no step of the range."""
        if self._profile is None:
            return
        self._profile.stop()
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._profile.export_chrome_trace(str(self._file))
        logger.info("the profile of steps %d to %d is in %s", self._steps.start, self._steps.stop - 1, self._file)
        self._profile = None
        self._steps = range(0)
