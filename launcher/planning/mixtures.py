"""What a mixture means: of each corpus its hours, its share, and how many hours and epochs a training reads of it."""

from typing import Any

import numpy as np

from data.sampling.mixture import MixtureSampler
from data.shards.joined_split import read_split
from launcher.recipe import AnyTrainingStage, MixtureCorpus, Recipe, SelfSupervisedStage
from launcher.run_folder import RunFolder
from launcher.stages.training_sampler import make_training_sampler
from model.layers.subsampling import output_length

Row = dict[str, Any]


def plan_mixture(recipe: Recipe, run: RunFolder, stage: AnyTrainingStage) -> list[Row]:
    """A row for each corpus of a mixture, or for each language of it, over all steps of a stage.

    No rows for a corpus without a mixture, or before its shards are there. What CTC cannot write is counted as if it
    were read: tokens are known to a training alone.
    """
    if not isinstance(recipe.corpus, MixtureCorpus) or not recipe.has_split(run, "train"):
        return []
    index = read_split(recipe.split_folders(run, "train"), max_damaged=recipe.cluster.storage.max_quarantined)
    transcribed = None
    if not isinstance(stage, SelfSupervisedStage):
        transcribed = index.text_length > 0
    no_tokens = np.zeros(len(index), dtype=np.int32)
    factor = stage.model.encoder.subsampling.factor
    sampler = make_training_sampler(
        recipe,
        run,
        index,
        no_tokens,
        no_tokens,
        recipe.batches_of(stage),
        recipe.seed_of(stage),
        recipe.augment_of(stage).speeds,
        encoder_frames=lambda samples: output_length(recipe.features.num_frames(samples), factor),
        transcribed=transcribed,
    )
    assert isinstance(sampler, MixtureSampler)
    rows = []
    for progress in sampler.progress(stage.steps):
        rows.append(
            {
                "corpus": progress.part.name,
                "from_step": progress.part.corpus.from_step,
                "hours": round(progress.hours, 4),
                "share": round(progress.share, 4),
                "hours_read": round(progress.hours_read, 4),
                "epochs": round(progress.epochs, 3),
            }
        )
    return rows
