"""The page of the files of a run folder. `tests/docs` compares the list with `launcher/run_folder.py`."""

from docs.generate.markdown import cell, code, table
from launcher.comparison.records import RECORDS_FORMAT
from launcher.run_files import ANALYSIS_FORMAT, STATE_FORMAT
from launcher.training.checkpoint.layout import FORMAT as CHECKPOINT_FORMAT

INTRODUCTION = f"""\
# The files of a run

This page lists what lies in a run folder, for whoever looks for something there or writes a program that reads it. It
is written by `make reference`.

JSON files are replaced whole, and files of JSON lines are only appended to. A version of Chorus reads the formats of
all earlier versions, and refuses those of later ones by their number: `state.json` is at {STATE_FORMAT}, checkpoints at
{CHECKPOINT_FORMAT}, analyses at {ANALYSIS_FORMAT}, records of comparisons at {RECORDS_FORMAT}. What begins with a dot
is not for other programs.
"""

# File or folder: its format, what it holds.
RUN_FILES = {
    "recipe.yaml": ("YAML", "the recipe with every default, as it was run last"),
    "state.json": ("JSON", "which stages are done, from which settings and inputs, with the hashes of what they left"),
    "events.jsonl": ("JSON lines", "[what happened](records.md#events)"),
    "results.json": ("JSON", "error rates, sizes and speed of the models that were evaluated"),
    "report.html": ("HTML", "[the report](../report.md), which needs no other file"),
    "job.sbatch": ("shell", "the batch script of a SLURM job"),
    "nodes.txt": ("text", "the commands of the other hosts, where nobody can log in to them"),
    "nodes/": ("JSON", "orders to those hosts"),
    "run.lock": ("text", "held by the launcher that runs the recipe"),
    ".token": ("text", "by which processes of this run are known"),
    ".store.json": ("JSON", "the store that the folder is uploaded to"),
    ".upload.json": ("JSON", "how far that is"),
    ".language-models/": ("ARPA", "n-gram models of the training transcripts"),
    ".languages/": ("NumPy", "languages of the training utterances of a mixture"),
    "corpus": ("shards", "[the shards](../shards.md) that the run made, by split"),
    "tokenizer": ("SentencePiece, JSON", "[the tokenizer](../tokenizers.md), and how many tokens each transcript has"),
    "tokenizer/features.json": ("JSON", "the log-mel front-end with mean and deviation of each band"),
    "tokenizer/infeasible.jsonl": ("JSON lines", "training utterances that CTC could not write in their frames"),
    "features.json": ("JSON", "the front-end of stages that have no tokenizer"),
}
STAGE_FILES = {
    "metrics.jsonl": ("JSON lines", "[metrics](records.md#metrics)"),
    "checkpoints": ("folders", "[checkpoints](../checkpoints.md), `step-NNNNNNNN` each with a `manifest.json`"),
    "checkpoints/latest": ("text", "the name of the newest"),
    "model": ("safetensors, JSON", "the finished model: weights, configuration, tokenizer, front-end"),
    "adapter": ("safetensors, JSON", "what an adaptation changed of its base"),
    "logs": ("text, JSON lines", "a log per process, quarantined utterances, errors"),
    "logs/launcher.log": ("text", "what the launchers of the processes printed"),
    "heartbeats": ("JSON", "when each process was last alive, at which step, doing what"),
    "profile": ("Chrome traces", "profiles of steps"),
    "stop": ("empty", "asks the stage to save and stop; `chorus stop` writes it"),
    "done.json": ("JSON", "how the processes of the last attempt ended"),
    "launch.json": ("JSON", "the commands and variables of the last attempt, secrets left out"),
    "set-aside.json": ("JSON", "what `state.json` said of work that was set aside (`STAGE.old-N`)"),
    "hostfile": ("text", "the hosts of the last attempt"),
    "wandb.json": ("JSON", "the run in W&B that this stage is"),
    "wandb": ("W&B", "records of W&B"),
    "tensorboard": ("TensorBoard", "records of TensorBoard"),
    "evaluation.json": ("JSON", "results of an evaluation, with examples"),
    "hypotheses/MODEL.jsonl": ("JSON lines", "reference and hypothesis of each utterance of an evaluation"),
    "analysis/": ("JSON", "the hardest utterances with times of words; what experts were chosen for"),
    "units/TEACHER.safetensors": ("safetensors", "clusters of a teacher's states"),
    "memory/": ("JSON", "micro-batches that did not fit into memory, and which were tried"),
    "export/step-NNNNNNNN": ("folders", "models that `chorus export --step` made"),
}


def run_folder_page() -> str:
    """Return the page, as Markdown."""
    lines = [INTRODUCTION]
    for title, files in (("## RUN", RUN_FILES), ("## RUN/STAGE", STAGE_FILES)):
        lines += [title, ""]
        rows = []
        for name, (kind, meaning) in files.items():
            rows.append((code(name), kind, cell(meaning)))
        lines += table(("file", "format", "holds"), rows)
    return "\n".join(lines).rstrip() + "\n"
