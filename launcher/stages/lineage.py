"""What each stage was made from, as artifacts: shards -> tokenizer -> models -> evaluation.

An artifact is known by the fingerprint under which `state.json` records it, so that every stage that uses it, in this
run or another one, means the same. It carries counts and fingerprints; audio and weights stay where they are.
"""

from collections.abc import Iterator
from pathlib import Path

from data.shard_index import read_summary
from launcher.run_files import read_evaluation
from launcher.stages.context import StageContext
from launcher.stages.pipeline import Pipeline
from launcher.tracking import Artifact


def used_artifacts(context: StageContext) -> Iterator[Artifact]:
    """The inputs of a stage as its record in state.json names them; none where there is no record.

    A teacher from elsewhere and a file of a search go by their fingerprint. DataError when shards are gone.
    """
    pipeline = Pipeline(context.recipe, context.run)
    inputs = pipeline.record(context.name).get("inputs", {})
    for name, fingerprint in inputs.items():
        if name.startswith("corpus/"):
            yield _shards_artifact(context, name.removeprefix("corpus/"), fingerprint)
        elif name == "tokenizer":
            place = {"folder": str(context.run.tokenizer)}
            yield _derived_artifact(pipeline, name, fingerprint, place)
        elif name == "features":
            place = {"file": str(context.run.statistics_file)}
            yield _derived_artifact(pipeline, name, fingerprint, place)
        elif "/" in name:
            kind = "search" if Path(name).is_file() else "model"
            yield Artifact(f"{kind}-{fingerprint[:12]}", kind, fingerprint, {}, {"path": name})
        else:
            yield _model_artifact(pipeline, name, fingerprint)


def made_artifacts(context: StageContext) -> Iterator[Artifact]:
    """What a stage has left: a finished model or an evaluation; nothing before it is there."""
    pipeline = Pipeline(context.recipe, context.run)
    node = next(node for node in pipeline.nodes if node.name == context.name)
    fingerprint = pipeline.output_hash(node)
    if fingerprint is None:
        return
    if node.kind != "evaluate":
        yield _model_artifact(pipeline, context.name, fingerprint)
        return

    evaluation = read_evaluation(context.folder) or {"models": {}}
    results = {}
    for name, model in evaluation["models"].items():
        results[name] = {key: value for key, value in model.items() if key != "examples"}
    content = {"made_from": pipeline.record(context.name).get("inputs", {}), "models": results}
    name = f"{context.recipe.name}-{context.name}"
    yield Artifact(name, "evaluation", fingerprint, content, {"folder": str(context.folder.path)})


def _shards_artifact(context: StageContext, split: str, fingerprint: str) -> Artifact:
    folder = context.split_folder(split)
    summary = read_summary(folder)
    shards = summary["shards"]
    content = {
        "sample_rate_hz": summary["sample_rate_hz"],
        "shards": len(shards),
        "utterances": sum(shard["utterances"] for shard in shards),
        "seconds": sum(shard["seconds"] for shard in shards),
    }
    name = f"{context.recipe.name}-shards-{split}"
    return Artifact(name, "shards", fingerprint, content, {"folder": str(folder)})


def _derived_artifact(pipeline: Pipeline, kind: str, fingerprint: str, place: dict[str, str]) -> Artifact:
    """What an implicit stage of that kind, and name, has made of the shards."""
    content = {"made_from": pipeline.record(kind).get("inputs", {})}
    return Artifact(f"{pipeline.recipe.name}-{kind}", kind, fingerprint, content, place)


def _model_artifact(pipeline: Pipeline, stage: str, fingerprint: str) -> Artifact:
    folder = pipeline.run.stage(stage).model
    content = {"made_from": pipeline.record(stage).get("inputs", {})}
    name = f"{pipeline.recipe.name}-{stage}-model"
    return Artifact(name, "model", fingerprint, content, {"folder": str(folder)})
