"""Intervals of a report's error rates, and of what sets each model apart from the teacher.

They follow from the hypotheses that an evaluation keeps, by the bootstrap over utterances. Models are compared on the
same draws.

Shapes: R replicates, U utterances.
"""

from dataclasses import dataclass, field
from typing import Any

import jiwer
import numpy as np

from data.errors import DataError
from data.files import is_file_name
from launcher.errors import ConfigError
from launcher.inference.bootstrap import Draws, Interval, Numbers, interval, rate
from launcher.inference.hypotheses import count_all_errors, read_hypotheses
from launcher.report.results import ResultRow, ResultsTable
from launcher.run_folder import RunFolder

# A page is to be there in seconds; more replicates move the ends by less than what is shown.
REPLICATES = 2000
# Of very large splits fewer are drawn: each draw is as long as the split.
MAX_DRAWN = 4 * 10**7
MIN_REPLICATES = 200
# What two ways of adding up the same errors may differ by.
SAME_RATE = 1e-6


@dataclass(frozen=True)
class ModelErrors:
    """The errors of one model in each utterance [U] in characters and words, and the lengths of the references.

    keys: corpus and key of each; rows: as the evaluation kept them.
    """

    keys: tuple[tuple[str, str], ...]
    rows: tuple[dict[str, str], ...]
    characters_U: Numbers
    character_lengths_U: Numbers
    words_U: Numbers
    word_lengths_U: Numbers

    @property
    def cer(self) -> float:
        return float(self.characters_U.sum() / max(self.character_lengths_U.sum(), 1.0))


@dataclass(frozen=True)
class ModelIntervals:
    """Intervals of one model's error rates, and of the teacher's characters that it gets wrong beyond the teacher.

    `difference` is that of the character error rates, not relative; None for the teacher, and without one.
    """

    cer: Interval
    wer: Interval
    difference: Interval | None


@dataclass
class ReadErrors:
    """The errors of those models whose hypotheses are there, and why others have none."""

    models: dict[str, ModelErrors] = field(default_factory=dict)
    gaps: list[str] = field(default_factory=list)


def read_errors(run: RunFolder, recipe: dict[str, Any], table: ResultsTable) -> ReadErrors:
    """The errors behind each row of a table of results."""
    errors = ReadErrors()
    missing = []
    for row in table.rows:
        if row.cer is None:
            continue
        try:
            model_errors = _read_model(run, recipe, row)
        except (ConfigError, DataError, ValueError) as problem:
            errors.gaps.append(f"No interval of {row.model}: {problem}")
            continue
        if model_errors is None:
            missing.append(row.model)
        else:
            errors.models[row.model] = model_errors
    if missing:
        errors.gaps.append(
            f"No intervals of {', '.join(missing)}: the run folder has no hypotheses that these error rates are of."
        )
    return errors


def _read_model(run: RunFolder, recipe: dict[str, Any], row: ResultRow) -> ModelErrors | None:
    """The errors of the first evaluation of a row's split that kept its hypotheses; None where none did."""
    for plan in recipe.get("stages") or []:
        if not isinstance(plan, dict) or plan.get("kind") != "evaluate" or plan.get("split") != row.split:
            continue
        # Either may come from somebody else, and lead out of the run folder.
        if not is_file_name(plan.get("name")) or not is_file_name(row.model):
            continue
        path = run.stage(plan["name"]).hypotheses_file(row.model)
        if not path.is_file():
            continue
        rows = read_hypotheses(path)
        # The keys of two corpora may be the same.
        keys = tuple((str(one.get("corpus", "")), one["key"]) for one in rows)
        characters, character_lengths = count_all_errors(rows, jiwer.process_characters)
        words, word_lengths = count_all_errors(rows, jiwer.process_words)
        errors = ModelErrors(
            keys,
            tuple(rows),
            np.array(characters, dtype=np.float64),
            np.array(character_lengths, dtype=np.float64),
            np.array(words, dtype=np.float64),
            np.array(word_lengths, dtype=np.float64),
        )
        # A later evaluation with another search has hypotheses of its own.
        if row.cer is not None and abs(errors.cer - row.cer) < SAME_RATE:
            return errors
    return None


def measure_intervals(table: ResultsTable, errors: dict[str, ModelErrors]) -> dict[str, ModelIntervals]:
    """The intervals of every model whose errors are known."""
    teacher = table.teacher()
    teacher_errors = None
    if teacher is not None:
        teacher_errors = errors.get(teacher.model)
    draws_of_length: dict[int, Draws] = {}
    intervals = {}
    for model, model_errors in errors.items():
        num_utterances = len(model_errors.keys)
        if num_utterances not in draws_of_length:
            replicates = max(MIN_REPLICATES, min(REPLICATES, MAX_DRAWN // num_utterances))
            draws_of_length[num_utterances] = Draws.sample(num_utterances, num_seeds=1, replicates=replicates)
        draws = draws_of_length[num_utterances]
        cer_R = draws.rates(model_errors.characters_U[None], model_errors.character_lengths_U)
        wer_R = draws.rates(model_errors.words_U[None], model_errors.word_lengths_U)
        difference = None
        comparable = teacher_errors is not None and teacher_errors.keys == model_errors.keys
        if teacher_errors is not None and comparable and teacher_errors is not model_errors:
            teacher_R = draws.rates(teacher_errors.characters_U[None], teacher_errors.character_lengths_U)
            difference = interval(model_errors.cer - teacher_errors.cer, cer_R - teacher_R)
        wer = rate(model_errors.words_U[None], model_errors.word_lengths_U)
        intervals[model] = ModelIntervals(interval(model_errors.cer, cer_R), interval(wer, wer_R), difference)
    return intervals


def verdict(difference: Interval) -> str:
    """What an interval of a difference of error rates shows, in words."""
    if difference.low > 0:
        return "more errors than the teacher"
    if difference.high < 0:
        return "fewer errors than the teacher"
    return "no difference shown"


def format_ends(rate_interval: Interval) -> str:
    """The ends of an interval of a rate, in percent."""
    return f"{100 * rate_interval.low:.2f} to {100 * rate_interval.high:.2f}"


def format_points(difference: Interval) -> str:
    """A difference of rates in percentage points, with the ends of its interval."""
    value = 100 * difference.value
    return f"{value:+.2f} ({100 * difference.low:+.2f} to {100 * difference.high:+.2f})"
