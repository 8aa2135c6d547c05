"""Trains one student on every topology and compares: `python tests/benchmarks/topology.py [--precision bf16]`.

The runs are real trainings of the worker's parts on speech of the embedded corpus: shared blocks with experts, dropout,
speed perturbation, SpecAugment, router jitter, balance loss and bias, gradient accumulation, clipping and activation
checkpointing are all on. Each is compared with a single process without ZeRO. That process trains once more with the
lanes of each step in reverse: how far sums in another order alone lead, which in bf16 is the yardstick.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

ROOT = Path(__file__).parents[2]
HELPERS = ROOT / "tests" / "helpers"
sys.path[:0] = [str(ROOT), str(HELPERS)]

import processes  # noqa: E402
from topology_worker import REVERSE_LANES, STAGE  # noqa: E402

from data.corpora import CORPORA  # noqa: E402
from data.corpora.aelita import AelitaConfig  # noqa: E402
from data.features import measure_statistics  # noqa: E402
from data.shards.index import read_index  # noqa: E402
from data.shards.reader import ShardReader  # noqa: E402
from data.shards.writer import write_split  # noqa: E402
from data.text.tokenizer import train_tokenizer  # noqa: E402
from launcher.errors import ConfigError  # noqa: E402
from launcher.recipe import dump, find_deepspeed_config, load_recipe  # noqa: E402
from launcher.recipe.deepspeed_config import check_deepspeed_config  # noqa: E402
from launcher.run_folder import RunFolder, write_json  # noqa: E402
from launcher.tracking import read_metrics  # noqa: E402
from launcher.training.checkpoint import newest_intact  # noqa: E402

UTTERANCES = 80
LANES = 8


@dataclass(frozen=True, order=True)
class Topology:
    processes: int
    expert_parallel: int
    zero: int
    reverse_lanes: bool = False

    @property
    def folder_name(self) -> str:
        order = "-reversed" if self.reverse_lanes else ""
        return f"processes-{self.processes}-experts-{self.expert_parallel}-zero-{self.zero}{order}"


REFERENCE = Topology(1, 1, 0)
REORDERED = Topology(1, 1, 0, reverse_lanes=True)


@dataclass(frozen=True)
class Result:
    """One run: a loss per step, the first step's gradients and the final weights, whole; the median step in s."""

    losses: list[float]
    gradients: dict[str, torch.Tensor]
    weights: dict[str, torch.Tensor]
    step_s: float


@dataclass(frozen=True)
class Difference:
    """From the reference, relative: the worst step's loss, the worst parameter's gradient, all final weights."""

    loss: float
    gradient: float
    weights: float


def all_topologies() -> list[Topology]:
    return [
        Topology(processes, expert_parallel, zero)
        for processes in (1, 2, 4)
        for expert_parallel in (1, 2, 4)
        if expert_parallel <= processes
        for zero in range(4)
    ]


def refusal(topology: Topology) -> str | None:
    """Why Chorus does not run this topology; none where it does."""
    try:
        check_deepspeed_config(find_deepspeed_config(f"zero{topology.zero}"), STAGE, topology.expert_parallel)
    except ConfigError as error:
        return str(error)
    return None


def train(folder: Path, topologies: list[Topology], steps: int, precision: str) -> dict[Topology, Result]:
    """Train on each topology from the same start; those with equal processes and experts share their processes."""
    shards, tokenizer = _prepare(folder / "prepared", steps, precision)
    together: dict[tuple[int, int], list[Topology]] = {}
    for topology in sorted({REFERENCE, *topologies}):
        together.setdefault((topology.processes, topology.expert_parallel), []).append(topology)
    results: dict[Topology, Result] = {}
    for (world, _), same in together.items():
        runs = [_make_run(folder / topology.folder_name, topology, shards, tokenizer) for topology in same]
        worker = Path(__file__).with_name("topology_worker.py")
        processes.run([str(worker), *(str(run.path) for run in runs)], world, folder / "log", timeout_s=3600)
        results |= {topology: _result(run, world) for topology, run in zip(same, runs, strict=True)}
    return results


def difference(result: Result, reference: Result) -> Difference:
    norm = torch.cat([gradient.flatten() for gradient in reference.gradients.values()]).norm()
    pairs = zip(result.losses, reference.losses, strict=True)
    return Difference(
        loss=max(abs(found - expected) / abs(expected) for found, expected in pairs),
        # A gradient that vanishes by its mathematics is only rounding: it counts by a thousandth of the whole norm.
        gradient=max(
            float((result.gradients[name] - expected).norm() / (expected.norm() + 1e-3 * norm))
            for name, expected in reference.gradients.items()
        ),
        weights=_distance(result.weights, reference.weights),
    )


def _distance(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    squares = sum((found[name] - values).square().sum() for name, values in expected.items())
    return float((squares / sum(values.square().sum() for values in expected.values())) ** 0.5)


def _prepare(folder: Path, steps: int, precision: str) -> tuple[Path, RunFolder]:
    """Shards, and a run folder with the recipe that all topologies start from, a tokenizer and feature statistics."""
    selected = CORPORA["aelita"].select(AelitaConfig(cuts=("phrases",)), seed=1).utterances
    utterances = [utterance for utterance in selected if utterance.split == "train"][:UTTERANCES]
    write_split(utterances, folder / "train", sample_rate_hz=16000, shard_seconds=20, seed=1, workers=1)
    run = RunFolder(folder)
    run.recipe_file.write_text(yaml.safe_dump(_recipe(folder, steps, precision)))
    recipe, index = load_recipe(run.recipe_file), read_index(folder / "train")
    train_tokenizer(index.transcripts(), recipe.tokenizer, run.tokenizer)
    mean, std = measure_statistics(ShardReader(index), recipe.features, recipe.seed, utterances=20)
    write_json(run.features_file, {"mean": mean.tolist(), "std": std.tolist()})
    return folder, run


def _recipe(shards: Path, steps: int, precision: str) -> dict:
    encoder = {
        "layers": 4,
        "groups": 2,
        "width": 32,
        "heads": 2,
        "feedforward_width": 64,
        "kernel_size": 5,
        "dropout": 0.1,
        "activation_checkpointing": True,
        "subsampling": {"channels": 4},
        "experts": {"count": 4, "router": {"per_frame": 2, "jitter": 0.01, "bias_rate": 0.001}},
    }
    return {
        "name": "topology",
        "corpus": {"name": "shards", "shards": str(shards)},
        "batches": {"lanes": LANES, "seconds": 4},
        "stages": [
            {
                "name": STAGE,
                "kind": "pretrain",
                "model": {"encoder": encoder, "decoder": {"layers": 1, "heads": 2, "feedforward_width": 64}},
                "optimizer": {"peak_learning_rate": 1e-3, "warmup_steps": 10},
                "steps": steps,
                "log_every": 1,
                "checkpoint": {"every_steps": steps},
            }
        ],
        "cluster": {"precision": precision},
    }


def _make_run(folder: Path, topology: Topology, shards: Path, prepared: RunFolder) -> RunFolder:
    run = RunFolder(folder)
    folder.mkdir()
    shutil.copytree(prepared.tokenizer, run.tokenizer)
    changes = {
        "processes": topology.processes,
        "expert_parallel": topology.expert_parallel,
        "deepspeed": f"zero{topology.zero}",
    }
    overrides = [f"cluster.{key}={value}" for key, value in changes.items()]
    run.recipe_file.write_text(dump(load_recipe(prepared.recipe_file, overrides)))
    if topology.reverse_lanes:
        (run.path / REVERSE_LANES).touch()
    return run


def _result(run: RunFolder, world: int) -> Result:
    rows = [row for row in read_metrics(run.stage(STAGE).metrics_file) if "loss" in row]
    saved = newest_intact(run.stage(STAGE))
    assert saved is not None
    gradients = {name: torch.zeros(shape) for name, shape in saved.shapes.items() if "weight" in saved.kinds(name)}
    for rank in range(world):
        for name, (start, part) in torch.load(run.path / f"gradients-{rank}.pt").items():
            gradients[name].view(-1)[start : start + part.numel()] = part.flatten()
    weights = {name: saved.whole("weight", name) for name in gradients}
    return Result([row["loss"] for row in rows], gradients, weights, statistics.median(row["step_s"] for row in rows))


def _table(results: dict[Topology, Result]) -> str:
    lines = [
        "| processes | expert parallel | ZeRO | loss, worst step | gradient, step 1 | final weights | s per step |",
        "|---|---|---|---|---|---|---|",
    ]
    for topology in [REORDERED, *all_topologies()]:
        order = ", lanes reversed" if topology.reverse_lanes else ""
        place = f"| {topology.processes} | {topology.expert_parallel} | {topology.zero}{order} |"
        if topology not in results:
            lines.append(f"{place} refused | | | |")
            continue
        found = difference(results[topology], results[REFERENCE])
        numbers = " | ".join(f"{value:.1e}" for value in (found.loss, found.gradient, found.weights))
        lines.append(f"{place} {numbers} | {results[topology].step_s:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    arguments = parser.parse_args()
    topologies = [topology for topology in all_topologies() if refusal(topology) is None]
    with tempfile.TemporaryDirectory() as folder:
        results = train(Path(folder), [REORDERED, *topologies], arguments.steps, arguments.precision)
    print(_table(results))


if __name__ == "__main__":
    main()
