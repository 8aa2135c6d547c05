"""The sampler of a training: over one corpus, or over a mixture of several."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from data.sampling.languages import utterance_languages
from data.sampling.mixture import Mixture, MixtureSampler, Part
from data.sampling.sampler import AnyIntegers, BatchesConfig, BatchSampler, Integers
from data.shards.joined_split import JoinedIndex, SplitIndex
from launcher.recipe import MixtureCorpus, Recipe
from launcher.run_folder import RunFolder

TrainingSampler = BatchSampler | MixtureSampler


def make_training_sampler(
    recipe: Recipe,
    run: RunFolder,
    index: SplitIndex,
    tokens: AnyIntegers,
    min_frames: AnyIntegers,
    batches: BatchesConfig,
    seed: int,
    speeds: Sequence[float],
    *,
    encoder_frames: Callable[[Integers], Integers],
    transcribed: npt.NDArray[np.bool_] | None = None,
) -> TrainingSampler:
    """The sampler over the split train of a recipe's corpora; see `BatchSampler` for the arguments.

    DataError when no utterance, or none of a corpus of a mixture, is left to train on.
    """
    if not isinstance(recipe.corpus, MixtureCorpus):
        return BatchSampler(
            index.shard,
            index.samples,
            tokens,
            min_frames,
            batches,
            seed,
            index.sample_rate_hz,
            speeds,
            encoder_frames=encoder_frames,
            transcribed=transcribed,
        )
    mixture = recipe.corpus.mixture
    parts, part = mixture_parts(mixture, run, index)
    return MixtureSampler(
        mixture,
        parts,
        part,
        index.shard,
        index.samples,
        tokens,
        min_frames,
        batches,
        seed,
        index.sample_rate_hz,
        speeds,
        encoder_frames=encoder_frames,
        transcribed=transcribed,
    )


def mixture_parts(mixture: Mixture, run: RunFolder, index: SplitIndex) -> tuple[list[Part], Integers]:
    """What has epochs of its own in a mixture, and the number of the part of each utterance of its index, int64 [N]."""
    if isinstance(index, JoinedIndex):
        indexes = list(index.indexes.values())
    else:
        indexes = [index]
    parts: list[Part] = []
    numbers: list[Integers] = []
    for corpus, corpus_index in zip(mixture.corpora, indexes, strict=True):
        if mixture.over == "corpora":
            numbers.append(np.full(len(corpus_index), len(parts), dtype=np.int64))
            parts.append(Part(corpus))
            continue
        languages, codes = utterance_languages(corpus_index, run.languages_file(corpus.name))
        numbers.append(len(parts) + codes.astype(np.int64))
        parts += [Part(corpus, language) for language in languages]
    return parts, np.concatenate(numbers)
