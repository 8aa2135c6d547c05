"""A step with a teacher that hears, one that is read, and none: `python -m tests.benchmarks.teacher_cache`.

Teacher and student of the recipe `base`, with random weights, on phrases of the embedded corpus; one process, fp32, one
lane of 30 s. The three train the same student on the same batches, in turns; a step is waiting for data, forward,
backward and AdamW. `--quick` is a small model, to see that it works.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from data.corpora import CORPORA
from data.corpora.aelita import AelitaConfig
from data.shard_index import read_report
from data.shards import write_split
from data.tokenizer import Tokenizer
from launcher.inference.finished_model import write_finished_model
from launcher.monitoring.progress import PlainDisplay
from launcher.recipe import DistillStage, Recipe, dump, load_recipe
from launcher.run_folder import RunFolder
from launcher.stages.context import StageContext
from launcher.stages.preparation import make_tokenizer
from launcher.training.distillation.loss import DistillationLoss
from launcher.training.distillation.setup import load_teachers, read_caches, wants_source
from launcher.training.inputs import Inputs, open_inputs
from launcher.training.recognition_loss import RecognitionLoss
from launcher.training.teachers.cache_match import choose_caches
from launcher.training.write_teacher_cache import CacheReport, cache_teachers
from model.recognizer import Recognizer
from model.student import Student
from tests.benchmarks.interleaved import time_in_turns

CPU = torch.device("cpu")
QUICK = {"layers": 2, "width": 32, "heads": 2, "feedforward_width": 64}
HEARS, READ, NONE = "teacher that hears every step", "teacher read from its cache", "no teacher"


def open_run(folder: Path, utterances: int, quick: bool) -> tuple[Recipe, RunFolder]:
    """A run with shards, tokenizer and a teacher's folder that holds a model without training."""
    selected = CORPORA["aelita"].select(AelitaConfig(cuts=("phrases", "spans")), seed=1).utterances
    chosen = [utterance for utterance in selected if utterance.split == "train"][:utterances]
    write_split(chosen, folder / "shards" / "train", sample_rate_hz=16000, shard_seconds=120, seed=1)
    shapes = {f"model.encoder.{key}": value for key, value in QUICK.items()} | {"model.intermediate_ctc": "[0]"}
    shapes |= {"model.decoder.heads": 2}
    changes = [f"stages.{stage}.{key}={value}" for stage in ("teacher", "student") for key, value in shapes.items()]
    recipe = load_recipe(
        "base",
        [
            f"corpus.shards={folder}/shards",
            "tokenizer.pieces=150",
            "batches={lanes: 1, seconds: 30}",
            "cluster.precision=fp32",
            "stages.student.teacher=null",
            f"stages.student.teachers=[{{name: teacher, model: {folder}/model, input: clean}}]",
            *(changes if quick else []),
        ],
    )
    run = RunFolder(folder / "run")
    run.path.mkdir()
    run.recipe_file.write_text(dump(recipe))
    make_tokenizer(recipe, run, PlainDisplay(io.StringIO()))
    config = recipe.recognition_stage("teacher").model
    torch.manual_seed(1)
    teacher = Recognizer(config, recipe.features.mel_bins, Tokenizer.load(run.tokenizer).vocabulary_size)
    write_finished_model(folder / "model", run, config, recipe.features, teacher.state_dict())
    return recipe, run


def open_task(
    recipe: Recipe, run: RunFolder, stage: DistillStage, name: str
) -> tuple[DistillationLoss | RecognitionLoss, Inputs, Student]:
    """What one of the three costs, what it reads and whom it trains."""
    inputs = open_inputs(StageContext(recipe, run, stage), "train", (0,), CPU, recipe.augment)
    tokenizer = Tokenizer.load(run.tokenizer)
    torch.manual_seed(2)
    student = Student(stage.model, recipe.features.mel_bins, tokenizer.vocabulary_size, {}).train()
    pretrain = RecognitionLoss(stage.objective, stage.model.encoder)
    if name == NONE:
        return pretrain, inputs, student
    caches = choose_caches(StageContext(recipe, run, stage)) if name == READ else None
    named_teachers, helpers = load_teachers(StageContext(recipe, run, stage), tokenizer.pieces, CPU, caches)
    task = DistillationLoss(pretrain, stage.distill, named_teachers, helpers)
    inputs.keeps_source = wants_source(task)
    read_caches(task, inputs, stage.steps)
    return task, inputs, student


def stepper(
    task: DistillationLoss | RecognitionLoss, inputs: Inputs, student: Student, steps: int
) -> Callable[[], None]:
    """A function that trains for one step more."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    batches: Iterator = inputs.steps(0, steps)

    def step() -> None:
        (batch,) = next(batches)
        optimizer.zero_grad(set_to_none=True)
        parts, _ = task(student, inputs.micro_batch(batch), inputs.totals(batch.step), 0.0)
        torch.stack(list(parts.values())).sum().backward()
        optimizer.step()

    return step


def show(times: dict[str, float], report: CacheReport, shards: Path, making_s: float) -> None:
    print("| | s per step | over no teacher |\n|---|---:|---:|")
    for name, seconds in times.items():
        print(f"| {name} | {seconds:.3f} | {seconds / times[NONE]:.2f} |")
    audio = read_report(shards)
    hours = report.seconds / 3600
    print("\n| | MB per hour of recordings |\n|---|---:|")
    print(f"| recordings, FLAC | {audio.bytes / 1e6 / (audio.seconds / 3600):.0f} |")
    print(f"| cache, all speeds | {report.bytes / 1e6 / (audio.seconds / 3600):.0f} |")
    print(f"| cache, one speed (per hour heard) | {report.bytes / 1e6 / hours:.0f} |")
    print(f"\nMaking the cache: {report.seconds / making_s:.0f} s of audio per s.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--utterances", type=int, default=200)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recipe, run = open_run(Path(folder), arguments.utterances, arguments.quick)
        stage = recipe.training_stage("student")
        assert isinstance(stage, DistillStage)
        started = time.perf_counter()
        caches = Path(folder) / "shards" / "train.teachers"
        (report,) = cache_teachers(StageContext(recipe, run, stage), caches, PlainDisplay(io.StringIO()))
        making_s = time.perf_counter() - started
        steps = {
            name: stepper(*open_task(recipe, run, stage, name), arguments.rounds + 1) for name in (HEARS, READ, NONE)
        }
        times = time_in_turns(steps, arguments.rounds)
        show(times, report, Path(folder) / "shards" / "train", making_s)


if __name__ == "__main__":
    main()
