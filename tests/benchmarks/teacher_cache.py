"""A step with a teacher that runs, one that is read, and none: `python -m tests.benchmarks.teacher_cache`.

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
from data.shards.index import read_report
from data.shards.writer import write_split
from data.text.tokenizer import Tokenizer
from launcher.inference.finished_model import write_finished_model
from launcher.monitoring.progress import PlainDisplay
from launcher.recipe import DistillStage, Recipe, dump, load_recipe
from launcher.run_folder import RunFolder
from launcher.stages.context import StageContext
from launcher.stages.preparation import make_tokenizer
from launcher.training.distillation.loss import DistillationLoss
from launcher.training.distillation.setup import load_teachers, needs_source, read_caches
from launcher.training.inputs import Inputs, open_inputs
from launcher.training.recognition_loss import RecognitionLoss
from launcher.training.teachers.cache_match import choose_caches
from launcher.training.write_teacher_cache import CacheReport, cache_teachers
from model.recognizer import Recognizer
from model.student import Student
from tests.benchmarks.interleaved import time_in_turns

CPU = torch.device("cpu")
QUICK = {"layers": 2, "width": 32, "heads": 2, "feedforward_width": 64}
RUN = "teacher that runs at every step"
READ = "teacher read from its cache"
NONE = "no teacher"


def open_run(folder: Path, utterances: int, quick: bool) -> tuple[Recipe, RunFolder]:
    """A run with shards, tokenizer and a teacher's folder that holds a model without training."""
    selected = CORPORA["aelita"].select(AelitaConfig(cuts=("phrases", "spans")), 1).utterances
    chosen = [utterance for utterance in selected if utterance.split == "train"][:utterances]
    write_split(chosen, folder / "shards" / "train", sample_rate_hz=16000, shard_seconds=120, seed=1)
    shapes: dict[str, object] = {f"model.encoder.{key}": value for key, value in QUICK.items()}
    shapes["model.intermediate_ctc"] = "[0]"
    shapes["model.decoder.heads"] = 2
    smaller = []
    if quick:
        for stage in ("teacher", "student"):
            smaller += [f"stages.{stage}.{key}={value}" for key, value in shapes.items()]
    recipe = load_recipe(
        "base",
        [
            f"corpus.shards={folder}/shards",
            "tokenizer.pieces=150",
            "batches={lanes: 1, seconds: 30}",
            "cluster.precision=fp32",
            "stages.student.teacher=null",
            f"stages.student.teachers=[{{name: teacher, model: {folder}/model, input: clean}}]",
            *smaller,
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


def open_stage(
    recipe: Recipe, run: RunFolder, stage: DistillStage, name: str
) -> tuple[DistillationLoss | RecognitionLoss, Inputs, Student]:
    """The loss, the inputs and the student of one of the three."""
    context = StageContext(recipe, run, stage)
    inputs = open_inputs(context, "train", (0,), CPU, recipe.augment)
    tokenizer = Tokenizer.load(run.tokenizer)
    torch.manual_seed(2)
    student = Student(stage.model, recipe.features.mel_bins, tokenizer.vocabulary_size, {}).train()
    recognition_loss = RecognitionLoss(stage.objective, stage.model.encoder)
    if name == NONE:
        return recognition_loss, inputs, student

    caches = choose_caches(context) if name == READ else None
    teachers, auxiliary_heads = load_teachers(context, tokenizer.pieces, CPU, caches)
    stage_loss = DistillationLoss(recognition_loss, stage.distill, teachers, auxiliary_heads)
    inputs.keeps_source = needs_source(stage_loss)
    read_caches(stage_loss, inputs, stage.steps)
    return stage_loss, inputs, student


def stepper(
    stage_loss: DistillationLoss | RecognitionLoss, inputs: Inputs, student: Student, steps: int
) -> Callable[[], None]:
    """A function that trains for one step more."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    batches: Iterator = inputs.steps(0, steps)

    def step() -> None:
        (batch,) = next(batches)
        optimizer.zero_grad(set_to_none=True)
        terms, _ = stage_loss(student, inputs.micro_batch(batch), inputs.totals(batch.step), 0.0)
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()

    return step


def show(times: dict[str, float], report: CacheReport, shards: Path, making_s: float) -> None:
    print("| | s per step | over no teacher |\n|---|---:|---:|")
    for name, seconds in times.items():
        print(f"| {name} | {seconds:.3f} | {seconds / times[NONE]:.2f} |")
    audio = read_report(shards)
    recorded_hours = audio.seconds / 3600
    cached_hours = report.seconds / 3600
    print("\n| | MB per hour of recordings |\n|---|---:|")
    print(f"| recordings, FLAC | {audio.bytes / 1e6 / recorded_hours:.0f} |")
    print(f"| cache, all speeds | {report.bytes / 1e6 / recorded_hours:.0f} |")
    print(f"| cache, one speed (per hour of audio) | {report.bytes / 1e6 / cached_hours:.0f} |")
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
        steps: dict[str, Callable[[], object]] = {}
        for name in (RUN, READ, NONE):
            stage_loss, inputs, student = open_stage(recipe, run, stage, name)
            steps[name] = stepper(stage_loss, inputs, student, arguments.rounds + 1)
        times = time_in_turns(steps, arguments.rounds)
        show(times, report, Path(folder) / "shards" / "train", making_s)


if __name__ == "__main__":
    main()
