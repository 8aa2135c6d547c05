"""A training worker whose memory is scarce: `scarce.py SETTINGS RUN_DIR STAGE`.

SETTINGS is JSON. frames: a micro-batch, or a part of one, of more padded feature frames than these does not fit. place:
where that shows, "features", "forward", "backward" (at its beginning) or "end" (when most gradients are computed).
error: "cuda", "cpu" or "memory". from_step: fits before. rank: the only process whose memory is scarce.
"""

import json
import os
import sys

import torch

from launcher import worker
from launcher.training.inputs import Inputs
from launcher.training.recognition_loss import RecognitionLoss

ERRORS = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory: you"),
    "memory": MemoryError("Unable to allocate 20.0 MiB for an array"),
}
micro_batch = Inputs.micro_batch
call = RecognitionLoss.__call__


def install(frames: int, place: str, error: str = "cuda", from_step: int = 0, rank: int | None = None) -> None:
    current = {"step": 0, "failed": False}
    if rank is not None and rank != int(os.environ["RANK"]):
        return

    def run_out() -> None:
        raise ERRORS[error]

    def is_too_large(features_BTF: torch.Tensor) -> bool:
        return current["step"] >= from_step and features_BTF.shape[0] * features_BTF.shape[1] > frames

    def scarce_features(self, batch):
        current["step"] = batch.step
        made = micro_batch(self, batch)
        # What is augmented is whole, so that no splitting would help: memory is scarce once.
        if place == "features" and not current["failed"] and is_too_large(made.features_BTF):
            current["failed"] = True
            run_out()
        return made

    def scarce_call(self, model, batch, totals, progress):
        terms, output = call(self, model, batch, totals, progress)
        if torch.is_grad_enabled() and is_too_large(batch.features_BTF):
            if place == "forward":
                run_out()
            watched = {"backward": output.ctc_BSV, "end": output.encoder.input_ND}
            if place in watched:
                watched[place].register_hook(lambda gradient: run_out())
        return terms, output

    Inputs.micro_batch = scarce_features
    RecognitionLoss.__call__ = scarce_call


if __name__ == "__main__":
    install(**json.loads(sys.argv[1]))
    torch.set_num_threads(1)
    code = worker.main(sys.argv[2:])
    sys.stdout.flush()
    os._exit(code)
