"""What each stage was made from, as artifacts: shards -> tokenizer -> models -> evaluation.

An artifact is known by the fingerprint under which `state.json` records it, so that every stage that uses it, in this
run or another one, means the same. It carries counts and fingerprints; audio and weights stay where they are.
"""

from collections.abc import Iterator
from pathlib import Path

from data.shards.index import read_summary
from launcher.run_files import read_evaluation
from launcher.stages.context import StageContext
from launcher.stages.pipeline import RECORDINGS_PREFIX, SHARDS_PREFIX, Pipeline
from launcher.tracking import Artifact


def used_artifacts(context: StageContext) -> Iterator[Artifact]:
    """The inputs of a stage as its record in state.json names them; none where there is no record.

    A teacher from elsewhere and a file of a search go by their fingerprint. DataError when shards are gone.
    """
    pipeline = Pipeline(context.recipe, context.run)
    for name, fingerprint in _recorded_inputs(pipeline, context.name).items():
        if name.startswith("corpus/"):
            yield _shards_artifact(context, name.removeprefix("corpus/"), fingerprint)
        elif name == "tokenizer":
            note = {"folder": str(context.run.tokenizer)}
            yield _derived_artifact(pipeline, name, fingerprint, note)
        elif name == "features":
            note = {"file": str(context.run.statistics_file)}
            yield _derived_artifact(pipeline, name, fingerprint, note)
        elif name.startswith(RECORDINGS_PREFIX):
            note = {"path": name.removeprefix(RECORDINGS_PREFIX)}
            yield Artifact(f"recordings-{fingerprint[:12]}", "recordings", fingerprint, content={}, note=note)
        elif name.startswith(SHARDS_PREFIX):
            note = {"folder": name.removeprefix(SHARDS_PREFIX)}
            yield Artifact(f"shards-{fingerprint[:12]}", "shards", fingerprint, content={}, note=note)
        elif "/" in name:
            kind = "model"
            # Language models and hotwords of a search are files, teachers folders.
            if Path(name).is_file():
                kind = "search"
            # Two files of one name are not one input: what is in them names the artifact.
            artifact_name = f"{kind}-{fingerprint[:12]}"
            yield Artifact(artifact_name, kind, fingerprint, content={}, note={"path": name})
        else:
            yield _model_artifact(pipeline, name, fingerprint)


def made_artifacts(context: StageContext) -> Iterator[Artifact]:
    """What a stage has left: a finished model or an evaluation; nothing before it is there."""
    pipeline = Pipeline(context.recipe, context.run)
    node = pipeline.node(context.name)
    fingerprint = pipeline.output_hash(node)
    if fingerprint is None:
        return
    if node.kind != "evaluate":
        yield _model_artifact(pipeline, context.name, fingerprint)
        return

    evaluation = read_evaluation(context.folder) or {"models": {}}
    results = {}
    for name, model in evaluation["models"].items():
        result = dict(model)
        # They are transcripts; an artifact carries counts.
        result.pop("examples", None)
        results[name] = result
    yield Artifact(
        name=f"{context.recipe.name}-{context.name}",
        kind="evaluation",
        fingerprint=fingerprint,
        content={"made_from": _recorded_inputs(pipeline, context.name), "models": results},
        note={"folder": str(context.folder.path)},
    )


def _shards_artifact(context: StageContext, split: str, fingerprint: str) -> Artifact:
    """A split's shards in the corpora that an input stands for; behind a slash, that of a corpus which joins later."""
    split, _, label = split.partition("/")
    if label:
        folders = [context.recipe.split_folders(context.run, split)[label]]
    elif split == "train":
        folders = list(context.recipe.initial_folders(context.run, split).values())
    else:
        folders = list(context.recipe.present_folders(context.run, split).values())
    num_shards = 0
    num_utterances = 0
    seconds = 0.0
    sample_rate_hz = 0
    for folder in folders:
        summary = read_summary(folder)
        sample_rate_hz = summary["sample_rate_hz"]
        num_shards += len(summary["shards"])
        for shard in summary["shards"]:
            num_utterances += shard["utterances"]
            seconds += shard["seconds"]
    name = f"{context.recipe.name}-shards-{split}"
    if label:
        name = f"{name}-{label}"
    return Artifact(
        name=name,
        kind="shards",
        fingerprint=fingerprint,
        content={
            "sample_rate_hz": sample_rate_hz,
            "shards": num_shards,
            "utterances": num_utterances,
            "seconds": seconds,
        },
        note={"folder": " ".join(map(str, folders))},
    )


def _recorded_inputs(pipeline: Pipeline, stage: str) -> dict[str, str]:
    """The fingerprints of a stage's inputs by their names; none where it was never started."""
    return pipeline.record(stage).get("inputs", {})


def _derived_artifact(pipeline: Pipeline, kind: str, fingerprint: str, note: dict[str, str]) -> Artifact:
    """What an implicit stage of that kind, and name, has made of the shards."""
    return Artifact(
        name=f"{pipeline.recipe.name}-{kind}",
        kind=kind,
        fingerprint=fingerprint,
        content={"made_from": _recorded_inputs(pipeline, kind)},
        note=note,
    )


def _model_artifact(pipeline: Pipeline, stage: str, fingerprint: str) -> Artifact:
    folder = pipeline.run.stage(stage).model
    return Artifact(
        name=f"{pipeline.recipe.name}-{stage}-model",
        kind="model",
        fingerprint=fingerprint,
        content={"made_from": _recorded_inputs(pipeline, stage)},
        note={"folder": str(folder)},
    )
