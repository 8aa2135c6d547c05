"""A stage that is trained for longer than it was planned to."""

import processes
import torch
import yaml
from safetensors.torch import load_file
from small_runs import STAGE

from launcher.run_folder import RunFolder

CHANGES = tuple(
    f"stages.{STAGE}.{change}"
    for change in ("optimizer.schedule=inverse_square_root", "validate_every=8", "checkpoint.every_steps=4")
)


def train(run: RunFolder) -> dict[str, torch.Tensor]:
    processes.run(["-m", "launcher.worker", str(run.path), STAGE], 2, run.path / "log")
    return load_file(run.stage(STAGE).model / "model.safetensors")


def test_more_steps_give_the_weights_of_the_longer_run(make_run):
    longer = train(make_run("longer", (*CHANGES, f"stages.{STAGE}.steps=6")))
    run = make_run("extended", (*CHANGES, f"stages.{STAGE}.steps=3"))
    train(run)
    recipe = yaml.safe_load(run.recipe_file.read_text())
    recipe["stages"][0]["steps"] = 6
    run.recipe_file.write_text(yaml.safe_dump(recipe))
    run.stage(STAGE).done_file.unlink()
    extended = train(run)
    assert extended.keys() == longer.keys()
    for name, weights in longer.items():
        assert torch.equal(extended[name], weights), name
