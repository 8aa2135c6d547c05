"""Which training utterances have more text than CTC can write in their frames, before any training starts.

CTC writes at most one token per encoder frame, and a blank between two that are equal. Such an utterance is excluded
from training. Mostly its transcript is wrong, its recording was cut, or the encoder leaves too few frames a second for
its tokens; so it is named and counted.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from data.sampling.sampler import INFEASIBLE, AnyIntegers, change_length, exclude
from data.sampling.token_counts import stored_token_counts
from data.shards.joined_split import JoinedIndex, SplitIndex, read_split
from data.text.tokenizer import Tokenizer
from launcher.recipe import AnyTrainingStage, Recipe, SelfSupervisedStage
from launcher.run_folder import RunFolder
from model.layers.subsampling import output_length

# Utterances that a sentence names; the file of the tokenizer stage has all.
MAX_NAMED = 3

Row = dict[str, Any]


def infeasible_by_stage(recipe: Recipe, index: SplitIndex, min_frames: AnyIntegers) -> Iterator[list[Row]]:
    """The rows of `infeasible_utterances` of each stage that learns from transcripts; seeds exclude the same, and are
    counted once."""
    seen: set[str] = set()
    for stage in recipe.training_stages():
        if isinstance(stage, SelfSupervisedStage) or stage.unseeded_name in seen:
            continue
        seen.add(stage.unseeded_name)
        yield list(infeasible_utterances(recipe, stage, index, min_frames))


def infeasible_utterances(
    recipe: Recipe, stage: AnyTrainingStage, index: SplitIndex, min_frames: AnyIntegers
) -> Iterator[Row]:
    """A row for each utterance that a stage excludes because CTC could not write its text at the highest speed.

    `min_frames` [N] are the fewest frames from which CTC can write each transcript.
    """
    features = recipe.features
    factor = stage.model.encoder.subsampling.factor
    speeds = recipe.augment_of(stage).speeds
    excluded = exclude(
        index.samples,
        min_frames,
        recipe.batches_of(stage),
        index.sample_rate_hz,
        speeds,
        lambda samples: output_length(features.num_frames(samples), factor),
        index.text_length > 0,
    )
    positions = excluded[INFEASIBLE]
    shortest = change_length(index.samples[positions], np.full(len(positions), max(speeds)))
    frames = output_length(features.num_frames(shortest), factor)
    rows = index.rows()
    num_read = 0
    for position, num_frames in zip(positions.tolist(), frames.tolist(), strict=True):
        # Texts are read front to back, as far as one is wanted.
        for _ in range(position - num_read):
            next(rows)
        row = next(rows)
        num_read = position + 1
        infeasible = {
            "stage": stage.name,
            "key": row["key"],
            "text": row["text"],
            "seconds": round(int(index.samples[position]) / index.sample_rate_hz, 3),
            "needed_frames": int(min_frames[position]),
            "frames": num_frames,
        }
        if isinstance(index, JoinedIndex):
            infeasible["corpus"], _ = index.locate(position)
        yield infeasible


def describe_infeasible(rows: list[Row], num_utterances: int) -> str:
    """A sentence that counts rows of one stage and names the first; empty where there is none."""
    if not rows:
        return ""
    named = []
    for row in rows[:MAX_NAMED]:
        named.append(
            f"{row['key']} ({row['seconds']:g} s, {row['frames']} frames at the highest speed for a text that needs "
            f"{row['needed_frames']})"
        )
    if len(rows) > MAX_NAMED:
        named.append(f"{len(rows) - MAX_NAMED} more")
    utterances = "utterances have"
    if len(rows) == 1:
        utterances = "utterance has"
    return (
        f"{len(rows)} of {num_utterances} training {utterances} more text than CTC can write in the frames, and "
        f"{rows[0]['stage']} does not read them: {', '.join(named)}. Look at their transcripts; where these are right, "
        "take a tokenizer with longer pieces, or lower model.encoder.subsampling.factor."
    )


def feasibility_warnings(recipe: Recipe, run: RunFolder) -> Iterator[dict[str, str]]:
    """Yield what `chorus plan` is to warn of where the shards are there: stage, kind and text.

    By the tokens that the tokenizer stage counted; before it, characters are known to be tokens of their own, and what
    other tokenizers will make of a text is not known.
    """
    if not recipe.has_split(run, "train"):
        return
    index = read_split(recipe.split_folders(run, "train"), max_damaged=recipe.cluster.storage.max_quarantined)
    min_frames = None
    if (run.tokenizer / "tokenizer.json").is_file():
        tokenizer = Tokenizer.load(run.tokenizer)
        counts = stored_token_counts(index, tokenizer, partial(run.token_counts_file, "train"))
        if counts is not None:
            _, min_frames = counts
    if min_frames is None:
        if recipe.tokenizer.kind != "char" or recipe.tokenizer.user_symbols or recipe.tokenizer.model:
            return
        min_frames = index.text_length
    for rows in infeasible_by_stage(recipe, index, min_frames):
        if rows:
            text = describe_infeasible(rows, len(index))
            yield {"stage": rows[0]["stage"], "kind": "infeasible", "text": text}
