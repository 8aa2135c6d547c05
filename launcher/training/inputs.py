"""From a split's shards to micro-batches of features on the device."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from data.augment import AugmentConfig, SpecAugment, apply_mask
from data.features import LogMel
from data.loader import Loader, WaveformBatch
from data.masking import Masking, MaskingConfig
from data.reader import ShardReader
from data.sampler import BatchesConfig, BatchSampler, Totals, derive_seed
from data.sampler_statistics import describe_excluded
from data.shards import read_index
from data.token_counts import token_counts
from data.tokenizer import Tokenizer
from launcher.inference.finished_model import build_features
from launcher.recipe import Recipe
from launcher.run_folder import RunFolder
from launcher.training.recognition_loss import CleanInputs, FeatureBatch
from model.layers.subsampling import output_length

# What validation and evaluation hear is what was recorded.
NO_AUGMENTATION = AugmentConfig(speeds=(1.0,), frequency_masks=0, time_masks=0)
# An empty lane still passes through every layer: one utterance of this many feature frames, none of them valid.
EMPTY_FRAMES = 16

logger = logging.getLogger(__name__)


@dataclass
class Inputs:
    """A split as seen by one process: the sampler of all lanes, and this process's share of the batches.

    With `keeps_source` a micro-batch also holds what its features were made from."""

    sampler: BatchSampler
    loader: Loader
    features: LogMel
    specaugment: SpecAugment | None
    seed: int
    device: torch.device
    masking: Masking | None = None
    keeps_source: bool = False

    def steps(self, start: int, stop: int) -> Iterator[list[WaveformBatch]]:
        """The batches of this process's lanes for each step of [start, stop)."""
        return self.loader.steps(start, stop)

    def totals(self, step: int) -> Totals:
        """The counts of a step over all lanes, masked frames included where features are masked."""
        totals = self.sampler.totals(step)
        return replace(totals, masked=self.masking.count(self.sampler, step)) if self.masking else totals

    def micro_batch(self, batch: WaveformBatch) -> FeatureBatch:
        """A lane's batch as augmented or masked features on the device."""
        if not batch.keys:
            return self._empty(batch)
        waveforms_BS, samples_B = batch.waveforms_BS.to(self.device, non_blocking=True), batch.samples_B.to(self.device)
        clean_BTF, lengths_B = self.features(waveforms_BS, samples_B)
        features_BTF, masked_BT = self._hide(clean_BTF, lengths_B, batch)
        return FeatureBatch(
            features_BTF,
            lengths_B,
            batch.tokens_BU.to(self.device),
            batch.token_lengths_B.to(self.device),
            CleanInputs(clean_BTF, masked_BT, waveforms_BS, samples_B) if self.keeps_source else None,
            batch.sidecars,
        )

    def _hide(self, clean_BTF: Tensor, lengths_B: Tensor, batch: WaveformBatch) -> tuple[Tensor, Tensor]:
        """What is heard of a lane's features, and the frames of which nothing is: bool [B, T]."""
        if self.masking is not None:
            return self.masking.hide(clean_BTF, lengths_B, batch.step, batch.lane)
        if self.specaugment is not None:
            generator = torch.Generator()
            generator.manual_seed(derive_seed(self.seed, "specaugment", batch.step, batch.lane))
            masked_BF, masked_BT = self.specaugment.masks(clean_BTF, lengths_B, generator)
            return apply_mask(clean_BTF, masked_BF, masked_BT), masked_BT
        return clean_BTF, clean_BTF.new_zeros(clean_BTF.shape[:2], dtype=torch.bool)

    def _empty(self, batch: WaveformBatch) -> FeatureBatch:
        config = self.features.config
        features = torch.zeros(1, EMPTY_FRAMES, config.mel_bins, device=self.device)
        nothing = torch.zeros(1, dtype=torch.int64, device=self.device)
        source = None
        if self.keeps_source:
            silence = features.new_zeros(1, config.window_samples + (EMPTY_FRAMES - 1) * config.hop_samples)
            source = CleanInputs(features, features[..., 0] > 0, silence, nothing)
        return FeatureBatch(features, nothing, nothing[:, None], nothing, source, batch.sidecars)


def open_inputs(
    recipe: Recipe,
    run: RunFolder,
    split: str,
    batches: BatchesConfig,
    augment: AugmentConfig,
    lanes: tuple[int, ...],
    device: torch.device,
    factor: int,
    masking: MaskingConfig | None = None,
    seed: int | None = None,
) -> Inputs:
    """Open a split of the recipe's corpus for the lanes of one process; one of them tells what is left out.

    `factor` is that of the stage's subsampling: how many feature frames the sampler counts as one frame. With `masking`
    features are masked instead of augmented, and transcripts are not looked at: utterances without one take part.
    `seed` is the stage's, where it has one of its own.
    """
    seed = recipe.seed if seed is None else seed
    index = read_index(recipe.split_folder(run, split))
    features_file = run.features_file if masking is None else run.statistics_file
    statistics = json.loads(features_file.read_text(encoding="utf-8"))
    features = build_features(recipe.features, statistics).to(device)
    tokenizer = Tokenizer.load(run.tokenizer) if masking is None else None
    tokens, min_frames = np.zeros((2, len(index)), dtype=np.int32)
    if tokenizer is not None:
        tokens, min_frames = token_counts(index, tokenizer, run.token_counts_file(split))
    sampler = BatchSampler(
        index.shard,
        index.samples,
        tokens,
        min_frames,
        batches,
        seed,
        index.sample_rate_hz,
        augment.speeds,
        encoder_frames=lambda samples: output_length(recipe.features.num_frames(samples), factor),
        transcribed=index.text_length > 0 if masking is None else None,
    )
    if 0 in lanes:
        _tell(sampler, run, split)
    loader = Loader(sampler, ShardReader(index), tokenizer, lanes, workers=recipe.cluster.data_workers)
    masks = augment.frequency_masks + augment.time_masks
    specaugment = SpecAugment(augment, recipe.features) if masks and masking is None else None
    masked = Masking(masking, recipe.features, factor, seed) if masking is not None else None
    return Inputs(sampler, loader, features, specaugment, seed, device, masked, keeps_source=masked is not None)


def _tell(sampler: BatchSampler, run: RunFolder, split: str) -> None:
    """Log the shape of a split's sampler, and leave it among the run's events."""
    logger.info("%s: %d steps per epoch. %s", split, sampler.steps_per_epoch, describe_excluded(sampler))
    excluded = {reason: len(utterances) for reason, utterances in sampler.excluded.items()}
    run.append_event(
        "plan_opened",
        split=split,
        steps_per_epoch=sampler.steps_per_epoch,
        utterances=len(sampler.shard),
        left_out=excluded,
    )
