"""A training worker in which some steps go wrong: `poison.py FAULTS RUN_DIR STAGE`.

FAULTS is JSON: for a step (counted from 0), what goes wrong with it. "features": the features of its lane 1 are not
finite; of its lane 3 where it says "features:3". "gradient": that lane's loss is finite and its gradient is not.
"omitted": the step does not take place, as if its batch were not there. "routing": from this step on every router sends
every frame to expert 0.
"""

import json
import os
import sys

import torch

from launcher import worker
from launcher.training.inputs import Inputs
from launcher.training.recognition_loss import RecognitionLoss
from launcher.training.trainer import Trainer

LANE = 1
micro_batch, step, terms = Inputs.micro_batch, Trainer.train_step, RecognitionLoss.terms


def install(faults: dict[int, str]) -> None:
    current = {}

    def goes_wrong(kind: str, step: int, lane: int) -> bool:
        fault, _, of_lane = faults.get(step, "").partition(":")
        return fault == kind and lane == int(of_lane or LANE)

    def bad_features(self, batch):
        current.update(step=batch.step, lane=batch.lane)
        made = micro_batch(self, batch)
        if goes_wrong("features", batch.step, batch.lane):
            made.features_BTF[0, 3] = float("nan")
        return made

    def bad_gradient(self, output, batch, totals):
        made = terms(self, output, batch, totals)
        if goes_wrong("gradient", current["step"], current["lane"]):
            made["loss/ctc"] = made["loss/ctc"] + (0 * output.ctc_BSV.sum()).sqrt()
        return made

    def omitted(self, batches, data_wait_s):
        if faults.get(self.step) == "routing":
            for layer in self.engine.module.encoder.layers:
                layer.router.bias[0] = 100.0
        if faults.get(self.step) != "omitted":
            return step(self, batches, data_wait_s)
        self.step += 1
        self.nonfinite.skipped += 1
        return False

    Inputs.micro_batch, Trainer.train_step, RecognitionLoss.terms = bad_features, omitted, bad_gradient


if __name__ == "__main__":
    install({int(number): fault for number, fault in json.loads(sys.argv[1]).items()})
    torch.set_num_threads(1)
    code = worker.main(sys.argv[2:])
    sys.stdout.flush()
    os._exit(code)
