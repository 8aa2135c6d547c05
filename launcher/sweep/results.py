"""What the runs of a sweep achieved, as trainings that `chorus compare` sets side by side.

A model of a sweep is a stage at a point, with its seeds; a training that no setting of the sweep touches is there once.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from launcher.comparison.model_results import EvaluationSet, Training, read_trainings
from launcher.errors import ConfigError
from launcher.sweep.trials import SweepFolder, Trial, read_sweep


def read_sweep_trainings(path: Path) -> tuple[str, EvaluationSet, list[Training]]:
    """Read the trainings of all finished runs of a sweep; ConfigError where none is finished, or where they were
    evaluated on different utterances."""
    folder = SweepFolder(path)
    content = read_sweep(folder)
    assert content is not None
    done = [trial for trial in content["trials"] if trial.state == "done"]
    if not done:
        raise ConfigError(
            f"No run of the sweep in {folder.path} is done yet, so there is nothing to compare. Give the same `chorus "
            "sweep` command again to go on with it."
        )
    evaluated = None
    by_trial: list[tuple[Trial, list[Training]]] = []
    for trial in done:
        _, trial_set, trainings = read_trainings(folder.trial(trial))
        if evaluated is None:
            evaluated = trial_set
        if trial_set.sha256 != evaluated.sha256:
            raise ConfigError(
                f"The runs of the sweep in {folder.path} were evaluated on different utterances ({by_trial[0][0].name} "
                f"and {trial.name}), and cannot be compared. Compare the runs below trials/ that were evaluated alike."
            )
        by_trial.append((trial, trainings))
    assert evaluated is not None
    return folder.path.name, evaluated, _put_together(by_trial)


def _put_together(by_trial: Sequence[tuple[Trial, list[Training]]]) -> list[Training]:
    """Trainings named after their points, where those of different points differ in their settings."""
    settings: dict[str, set[str]] = {}
    for _, trainings in by_trial:
        for training in trainings:
            settings.setdefault(training.model, set()).add(training.settings_sha256)
    # What learns from a model that differs is another one at each point, too.
    differing = {model for model, versions in settings.items() if len(versions) > 1}
    while True:
        followers = set()
        for _, trainings in by_trial:
            followers |= {training.model for training in trainings if training.teacher in differing}
        if followers <= differing:
            break
        differing |= followers

    together: dict[str, Training] = {}
    for trial, trainings in by_trial:

        def named(model: str, trial: Trial = trial) -> str:
            return f"{model}-{trial.point_name}" if model in differing else model

        for training in trainings:
            stage = training.stage
            if training.model in differing:
                stage = f"{named(training.model)}-{training.seed}"
            renamed = replace(
                training,
                stage=stage,
                model=named(training.model),
                teacher=named(training.teacher) if training.teacher else None,
                compare_to=tuple(named(model) for model in training.compare_to),
            )
            # A shared training is in every run, and is one.
            together.setdefault(stage, renamed)
    return list(together.values())
