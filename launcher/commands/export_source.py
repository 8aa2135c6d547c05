"""Which finished model an argument names, the run that it comes from, and models of checkpoints."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from data.features import FeaturesConfig
from launcher.errors import CheckpointError, ConfigError
from launcher.export.stored_dtype import StoredDtype, stored_as
from launcher.export.whole_folder import check_is_free
from launcher.inference.finished_model import write_finished_model
from launcher.inference.model_lookup import find_model
from launcher.monitoring.status import load_run_recipe, open_run
from launcher.recipe import AdaptStage, AverageConfig, validate
from launcher.run_files import read_set_aside, read_state
from launcher.run_folder import RunFolder
from launcher.run_links import check_links
from launcher.stages.pipeline import Pipeline
from launcher.training.checkpoint import averaged_weights, open_checkpoint
from model.masked_prediction import MaskedPredictorConfig
from model.recognizer import RecognizerConfig


@dataclass(frozen=True)
class ModelSource:
    """A finished model's folder and, where it lies in a run, the run and the name of its stage."""

    folder: Path
    run: RunFolder | None
    stage: str | None

    @property
    def name(self) -> str:
        """What the model is called."""
        if self.run is not None and self.stage is not None:
            return f"{self.run.path.resolve().name}-{self.stage}"
        return self.folder.resolve().name


@contextmanager
def open_source(place: Path, step: int | None = None) -> Iterator[ModelSource]:
    """Yield the model of a stage or a model folder; with `step`, or of a stage not yet done, that of a checkpoint.

    CheckpointError when there is none.
    """
    for folder in (place / "model", place):
        if step is None and any(folder.glob("*.safetensors")):
            run, stage = _run_of(folder)
            yield ModelSource(folder, run, stage)
            return
    if read_state(RunFolder(place.parent)) is None:
        if step is not None:
            raise ConfigError(f"{place} is no stage of a run, so it has no checkpoints: leave --step out.")
        yield ModelSource(find_model(str(place)), None, None)
        return
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        export_checkpoint(place, step, folder)
        yield ModelSource(folder, RunFolder(place.parent), place.name)


def _run_of(folder: Path) -> tuple[RunFolder | None, str | None]:
    """The run and the stage of RUN/STAGE/model."""
    stage = folder.absolute().parent
    run = RunFolder(stage.parent)
    if folder.name != "model" or read_state(run) is None:
        return None, None
    return run, stage.name


def default_folder(source: ModelSource, kind: str, step: int | None) -> Path:
    """RUN/STAGE/export/KIND; ConfigError for a model outside of a run, or where a link leads out of the run."""
    if source.run is None or source.stage is None:
        raise ConfigError(f"{source.folder} lies in no run: say with --out where the export is to be written.")
    check_links(source.run.path)
    name = kind
    if step is not None:
        name = f"{kind}-step-{step:08d}"
    return source.run.stage(source.stage).path / "export" / name


def export_checkpoint(
    place: Path,
    step: int | None,
    folder: Path | None,
    average: AverageConfig | None = None,
    dtype: StoredDtype = "fp32",
) -> tuple[Path, list[int]]:
    """Write the model of a stage's checkpoint: of this step, or of the newest that is intact, or the average of
    several up to there, with weights stored in `dtype`; without a process group.

    To `folder`, or to RUN/STAGE/export/step-N or average-KIND. Returns the folder and the steps of the checkpoints.
    ConfigError when something is there.
    """
    run = open_run(place.parent)
    # The model is written below the stage, unless --out says where.
    check_links(run.path)
    recipe = load_run_recipe(run)
    folder_of_stage = run.stage(place.name)
    record = read_set_aside(folder_of_stage)
    origin: RunFolder | Path = run
    if record is None:
        stage = recipe.training_stage(place.name)
        config = stage.model
        features = recipe.features
        if isinstance(stage, AdaptStage):
            # An adaptation has the tokenizer and the statistics of its base.
            origin = run.model_folder(stage.base)
    elif record["kind"] == "adapt":
        raise ConfigError(
            f"{folder_of_stage.path} is an adaptation that was set aside, whose base the recipe does not name any "
            f"more. Give the model that it was made of, with --adapter {folder_of_stage.adapter}."
        )
    else:
        # The recipe has other settings by now: those of this work are in its record.
        pipeline = Pipeline(recipe, run)
        for node in pipeline.nodes:
            # Both are replaced in place when their settings change, and a model written with others would read noise.
            if node.kind not in ("tokenizer", "features"):
                continue
            expected = record["inputs"].get(node.name)
            if expected is not None and expected != pipeline.output_hash(node):
                raise CheckpointError(
                    f"{folder_of_stage.path} was trained with another {node.name} than the run has now, so that its "
                    "outputs could not be read. Run the recipe with the settings that it had; then export the stage."
                )
        settings = record["settings"]
        source = folder_of_stage.record_file
        features = validate(FeaturesConfig, settings.get("features"), f"{source}: features")
        config_type = RecognizerConfig
        if record["kind"] == "self_supervised":
            config_type = MaskedPredictorConfig
        config = validate(config_type, settings.get("model"), f"{source}: model")
    if average is None:
        checkpoint = open_checkpoint(folder_of_stage, step)
        weights = checkpoint.weights()
        steps = [checkpoint.step]
        default = folder_of_stage.export(checkpoint.step)
    else:
        weights, steps = averaged_weights(folder_of_stage, average, step)
        name = f"average-{average.kind}"
        if step is not None:
            name += f"-step-{step:08d}"
        default = folder_of_stage.path / "export" / name
    if folder is None:
        folder = default
    check_is_free(folder)
    write_finished_model(folder, origin, config, features, stored_as(weights, dtype))
    return folder, steps
