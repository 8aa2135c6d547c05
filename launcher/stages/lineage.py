"""What each stage was made from, as artifacts: shards -> tokenizer -> models -> evaluation.

An artifact is known by the fingerprint under which `state.json` records it, so that every stage that uses it, in this
run or another one, means the same. It carries counts and fingerprints; audio and weights stay where they are.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.shard_index import read_summary
from launcher.recipe import Recipe
from launcher.run_folder import RunFolder, read_json
from launcher.stages.context import StageContext
from launcher.stages.pipeline import Pipeline
from launcher.tracking import Artifact


def used_artifacts(context: StageContext) -> Iterator[Artifact]:
    """The inputs of a stage as its record in state.json names them; none where there is no record.

    A teacher from elsewhere and a file of a search go by their fingerprint. DataError when shards are gone.
    """
    recipe, run, stage = context.recipe, context.run, context.name
    pipeline = Pipeline(recipe, run)
    for name, fingerprint in pipeline.record(stage).get("inputs", {}).items():
        if name.startswith("corpus/"):
            yield _shards(recipe, run, name.removeprefix("corpus/"), fingerprint)
        elif name in ("tokenizer", "features"):
            made_from = pipeline.record(name).get("inputs", {})
            place = {"folder": str(run.tokenizer)} if name == "tokenizer" else {"file": str(run.statistics_file)}
            yield Artifact(f"{recipe.name}-{name}", name, fingerprint, {"made_from": made_from}, place)
        elif "/" in name:
            kind = "search" if Path(name).is_file() else "model"
            yield Artifact(f"{kind}-{fingerprint[:12]}", kind, fingerprint, {}, {"path": name})
        else:
            yield _model(pipeline, name, fingerprint)


def made_artifacts(context: StageContext) -> Iterator[Artifact]:
    """What a stage has left: a finished model or an evaluation; nothing before it is there."""
    recipe, run, stage = context.recipe, context.run, context.name
    pipeline = Pipeline(recipe, run)
    node = next(node for node in pipeline.nodes if node.name == stage)
    fingerprint = pipeline.output_hash(node)
    if fingerprint is None:
        return
    if node.kind != "evaluate":
        yield _model(pipeline, stage, fingerprint)
        return
    found = read_json(run.stage(stage).evaluation_file)
    results = {name: _without_examples(model) for name, model in found["models"].items()}
    made_from = pipeline.record(stage).get("inputs", {})
    content = {"made_from": made_from, "models": results}
    yield Artifact(f"{recipe.name}-{stage}", "evaluation", fingerprint, content, {"folder": str(run.stage(stage).path)})


def _without_examples(model: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in model.items() if key != "examples"}


def _shards(recipe: Recipe, run: RunFolder, split: str, fingerprint: str) -> Artifact:
    folder = recipe.split_folder(run, split)
    summary = read_summary(folder)
    shards = summary["shards"]
    content = {
        "sample_rate_hz": summary["sample_rate_hz"],
        "shards": len(shards),
        "utterances": sum(shard["utterances"] for shard in shards),
        "seconds": sum(shard["seconds"] for shard in shards),
    }
    return Artifact(f"{recipe.name}-shards-{split}", "shards", fingerprint, content, {"folder": str(folder)})


def _model(pipeline: Pipeline, stage: str, fingerprint: str) -> Artifact:
    folder: Path = pipeline.run.stage(stage).model
    made_from = pipeline.record(stage).get("inputs", {})
    name = f"{pipeline.recipe.name}-{stage}-model"
    return Artifact(name, "model", fingerprint, {"made_from": made_from}, {"folder": str(folder)})
