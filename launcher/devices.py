"""Where tensors live: on GPUs (CUDA) or on the processors. Decided here and nowhere else.

The launcher, DeepSpeed, training, planning and recognition ask `accelerator`. It takes the environment variable
DS_ACCELERATOR, which DeepSpeed reads too, and without it what PyTorch sees. `worker_device` and `recognition_device`
turn the answer into the device of one process. Refused: other accelerators than these two, and GPUs that are not there.
"""

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TypeAlias

from launcher.errors import ConfigError

if TYPE_CHECKING:
    import torch

Accelerator: TypeAlias = Literal["cuda", "cpu"]

VARIABLE = "DS_ACCELERATOR"
ON_PROCESSORS = f"{VARIABLE}=cpu in the environment"
# What a recipe and --device may say of a device.
DEVICE_PATTERN = r"cpu|cuda(:\d+)?"


def accelerator() -> Accelerator:
    """Return what this machine's environment asks for, else what PyTorch finds; ConfigError for anything else."""
    chosen = os.environ.get(VARIABLE)
    if chosen == "cpu":
        return "cpu"
    if chosen == "cuda":
        return "cuda"
    if chosen:
        raise ConfigError(
            f"{VARIABLE} is {chosen!r} in the environment, and Chorus computes on cuda or cpu. Set {VARIABLE}=cuda to "
            "use GPUs that PyTorch sees through CUDA or ROCm, set it to cpu for the processors, or unset it."
        )
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "cpu"


def num_gpus() -> int:
    """Return how many GPUs a process here may use; ConfigError when they are asked for and there is none."""
    import torch

    # CUDA counts devices that its driver cannot open, which is_available() does not.
    if torch.cuda.is_available():
        return torch.cuda.device_count()
    raise ConfigError(
        f"GPUs are asked for, and PyTorch {torch.__version__} sees none here{_visible_devices(os.environ)}. Make them "
        f"visible, look at `nvidia-smi` and `chorus doctor`, or compute on the processors with {ON_PROCESSORS}."
    )


def worker_device() -> "torch.device":
    """Return the device of a training process: the GPU of its LOCAL_RANK, or the processors."""
    import torch

    if accelerator() == "cpu":
        return torch.device("cpu")
    index = int(os.environ.get("LOCAL_RANK", "0"))
    return _gpu(index)


def recognition_device(choice: str | None = None) -> "torch.device":
    """Return where a finished model computes: the device that was chosen ("cpu", "cuda", "cuda:1"), by default the
    first GPU where `accelerator` says so. ConfigError for a GPU that is not there, and for what is no device."""
    import torch

    if choice is None:
        choice = accelerator()
    if not re.fullmatch(DEVICE_PATTERN, choice):
        raise ConfigError(f"The device is {choice!r}; give cpu, cuda (the first GPU) or cuda:N, counted from 0.")
    if choice == "cpu":
        return torch.device("cpu")
    _, _, index = choice.partition(":")
    return _gpu(int(index or 0))


def _gpu(index: int) -> "torch.device":
    import torch

    gpus = num_gpus()
    if index >= gpus:
        raise ConfigError(
            f"GPU {index} is asked for, and PyTorch sees {describe_gpus(gpus)} here, counted from 0"
            f"{_visible_devices(os.environ)}. Name another one, or compute on the processors with {ON_PROCESSORS}."
        )
    return torch.device("cuda", index)


def describe_gpus(number: int) -> str:
    if number == 1:
        return "1 GPU"
    return f"{number} GPUs"


def _visible_devices(environment: Mapping[str, str]) -> str:
    """Return what CUDA_VISIBLE_DEVICES hides, as the end of a clause; empty without the variable."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return ""
    return f" (CUDA_VISIBLE_DEVICES is {visible!r})"
