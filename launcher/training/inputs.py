"""From a split's shards to micro-batches of features on the device."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from data.augmentation import AugmentConfig, ShardSet, SpecAugment, WaveformAugmentation, apply_mask, warp_time
from data.features import LogMel
from data.loader import Loader, WaveformBatch
from data.masking import Masking
from data.sampling.sampler import AnyIntegers, BatchSampler, Integers, Totals
from data.sampling.statistics import describe_excluded
from data.sampling.token_counts import split_token_counts
from data.seeds import derive_seed
from data.shards.joined_split import SplitIndex, open_reader
from data.text.tokenizer import Tokenizer
from launcher.inference.finished_model import build_features
from launcher.quarantine import QuarantineLog
from launcher.recipe import AdaptStage, AnyTrainingStage, SelfSupervisedStage
from launcher.run_files import read_statistics
from launcher.run_folder import RunFolder
from launcher.stages.context import StageContext
from launcher.stages.training_sampler import TrainingSampler, make_training_sampler
from launcher.training.feature_batch import CleanInputs, FeatureBatch
from launcher.training.front_end import read_feature_statistics, read_tokenizer, token_counts_file
from model.layers.subsampling import output_length

# Validation and evaluation take recordings as they are.
NO_AUGMENTATION = AugmentConfig(speeds=(1.0,), frequency_masks=0, time_masks=0)
# An empty lane still passes through every layer, because every process enters every collective: it is one utterance of
# this many feature frames, none of them valid.
EMPTY_FRAMES = 16

logger = logging.getLogger(__name__)


@dataclass
class Inputs:
    """A split as seen by one process: the sampler of all lanes, and this process's share of the batches.

    With `keeps_source` a micro-batch also holds what its features were made from.
    """

    sampler: TrainingSampler
    loader: Loader
    features: LogMel
    specaugment: SpecAugment | None
    seed: int
    device: torch.device
    masking: Masking | None = None
    augment: AugmentConfig = NO_AUGMENTATION
    keeps_source: bool = False

    def steps(self, start: int, stop: int) -> Iterator[list[WaveformBatch]]:
        """The batches of this process's lanes for each step of [start, stop)."""
        return self.loader.steps(start, stop)

    def totals(self, step: int) -> Totals:
        """The counts of a step over all lanes, masked frames included where features are masked."""
        totals = self.sampler.totals(step)
        if self.masking is not None:
            totals = replace(totals, masked=self.masking.count(self.sampler, step))
        return totals

    def sum_totals(self, steps: Iterable[int]) -> Totals:
        """The counts of several steps together."""
        summed = Totals(utterances=0, tokens=0, frames=0, masked=0)
        for step in steps:
            totals = self.totals(step)
            summed = Totals(
                utterances=summed.utterances + totals.utterances,
                tokens=summed.tokens + totals.tokens,
                frames=summed.frames + totals.frames,
                masked=summed.masked + totals.masked,
            )
        return summed

    def micro_batch(self, batch: WaveformBatch) -> FeatureBatch:
        """A lane's batch as augmented or masked features on the device."""
        if not batch.keys:
            config = self.features.config
            features_BTF = torch.zeros(1, EMPTY_FRAMES, config.mel_bins, device=self.device)
            zero_B = torch.zeros(1, dtype=torch.int64, device=self.device)
            source = None
            if self.keeps_source:
                num_samples = config.window_samples + (EMPTY_FRAMES - 1) * config.hop_samples
                silence_BS = features_BTF.new_zeros(1, num_samples)
                nothing_masked_BT = features_BTF[..., 0] > 0
                source = CleanInputs(features_BTF, nothing_masked_BT, silence_BS, zero_B)
            return FeatureBatch(
                features_BTF=features_BTF,
                lengths_B=zero_B,
                tokens_BU=zero_B[:, None],
                token_lengths_B=zero_B,
                source=source,
                sidecars=batch.sidecars,
            )

        waveforms_BS = batch.waveforms_BS.to(self.device, non_blocking=True)
        samples_B = batch.samples_B.to(self.device)
        clean_BTF, lengths_B = self.features(waveforms_BS, samples_B)
        # Before anything looks at the features: whatever is to be compared frame by frame is warped alike.
        if self.augment.time_warp is not None and self.masking is None:
            generator = torch.Generator()
            generator.manual_seed(derive_seed(self.seed, "time warp", batch.step, batch.lane))
            config = self.features.config
            clean_BTF = warp_time(clean_BTF, lengths_B, self.augment.time_warp, config, generator)

        # Masks are drawn from (seed, step, lane): they depend neither on the process nor on what was drawn before.
        if self.masking is not None:
            features_BTF, masked_BT = self.masking.apply_mask(clean_BTF, lengths_B, batch.step, batch.lane)
        elif self.specaugment is not None:
            generator = torch.Generator()
            generator.manual_seed(derive_seed(self.seed, "specaugment", batch.step, batch.lane))
            masked_BF, masked_BT = self.specaugment.masks(clean_BTF, lengths_B, generator)
            features_BTF = apply_mask(clean_BTF, masked_BF, masked_BT)
        else:
            features_BTF = clean_BTF
            masked_BT = clean_BTF.new_zeros(clean_BTF.shape[:2], dtype=torch.bool)

        source = None
        if self.keeps_source:
            source = CleanInputs(clean_BTF, masked_BT, waveforms_BS, samples_B)
        return FeatureBatch(
            features_BTF=features_BTF,
            lengths_B=lengths_B,
            tokens_BU=batch.tokens_BU.to(self.device),
            token_lengths_B=batch.token_lengths_B.to(self.device),
            source=source,
            sidecars=batch.sidecars,
        )


def open_inputs(
    context: StageContext[AnyTrainingStage],
    split: str,
    lanes: tuple[int, ...],
    device: torch.device,
    augment: AugmentConfig = NO_AUGMENTATION,
) -> Inputs:
    """Open a split of the recipe's corpus, or (with a slash) the shards of one in a folder or behind a URL, for the
    lanes of one process; the process of lane 0 logs what is excluded.

    A self-supervised stage masks features instead of augmenting them (recordings are augmented), and does not look at
    transcripts: utterances without one take part.
    """
    recipe = context.recipe
    run = context.run
    index = context.read_index(split)

    tokenizer = None
    tokens = min_frames = np.zeros(len(index), dtype=np.int32)
    transcribed = None
    masking = None
    specaugment = None
    if isinstance(context.stage, SelfSupervisedStage):
        statistics = read_statistics(run.statistics_file)
        masking = Masking(context.stage.masking, recipe.features, context.subsampling_factor, context.seed)
    else:
        statistics = read_feature_statistics(context)
        tokenizer = read_tokenizer(context)
        tokens, min_frames = split_token_counts(index, tokenizer, partial(token_counts_file, context, split))
        transcribed = index.text_length > 0
        if augment.frequency_masks + augment.time_masks > 0:
            specaugment = SpecAugment(augment, recipe.features)
    features = build_features(recipe.features, statistics).to(device)

    sampler = _make_sampler(context, split, index, tokens, min_frames, transcribed, augment.speeds)
    if 0 in lanes:
        _report_sampler(sampler, run, split)
    return Inputs(
        sampler=sampler,
        loader=_open_loader(context, split, index, sampler, tokenizer, lanes, augment),
        features=features,
        specaugment=specaugment,
        seed=context.seed,
        device=device,
        masking=masking,
        augment=augment,
        # A masked prediction is about the clean features.
        keeps_source=masking is not None,
    )


def _make_sampler(
    context: StageContext[AnyTrainingStage],
    split: str,
    index: SplitIndex,
    tokens: AnyIntegers,
    min_frames: AnyIntegers,
    transcribed: npt.NDArray[np.bool_] | None,
    speeds: Sequence[float],
) -> TrainingSampler:
    """The batches of all lanes: those of the recipe's mixture for train, and of the whole split for any other."""
    recipe = context.recipe

    def encoder_frames(samples: Integers) -> Integers:
        num_frames = recipe.features.num_frames(samples)
        return output_length(num_frames, context.subsampling_factor)

    if split == "train":
        return make_training_sampler(
            recipe,
            context.run,
            index,
            tokens,
            min_frames,
            context.batches,
            context.seed,
            speeds,
            encoder_frames=encoder_frames,
            transcribed=transcribed,
        )
    # Validation reads every utterance of every corpus once, whatever its share of the training.
    return BatchSampler(
        index.shard,
        index.samples,
        tokens,
        min_frames,
        context.batches,
        context.seed,
        index.sample_rate_hz,
        speeds,
        encoder_frames=encoder_frames,
        transcribed=transcribed,
    )


def _open_loader(
    context: StageContext[AnyTrainingStage],
    split: str,
    index: SplitIndex,
    sampler: TrainingSampler,
    tokenizer: Tokenizer | None,
    lanes: tuple[int, ...],
    augment: AugmentConfig,
) -> Loader:
    """What reads, augments and tokenizes the utterances of one process's lanes, and quarantines the broken ones."""
    recipe = context.recipe
    storage = recipe.cluster.storage
    reader = open_reader(index, storage)
    augmentation = None
    if augment.waveform_kinds():
        utterances = ShardSet(reader, len(index))
        augmentation = WaveformAugmentation(augment, index.sample_rate_hz, context.seed, utterances, storage)

    # Named after the first lane, so that no two processes write to one file.
    first_lane = min(lanes, default=0)
    quarantine = QuarantineLog(context.folder.quarantine_file(first_lane), split)
    return Loader(
        sampler,
        reader,
        tokenizer,
        lanes,
        workers=recipe.cluster.data_workers,
        augmentation=augmentation,
        connections=reader.connections,
        # The tokenizer knows every symbol of what it was trained on: another one says that a text was changed, or that
        # the tokenizer is not for this corpus. Other splits may have words of their own, and so has what it was not
        # trained on.
        only_known=split == "train" and recipe.knows_training_texts and not isinstance(context.stage, AdaptStage),
        max_broken_ratio=storage.max_quarantined,
        on_broken=quarantine.add,
    )


def _report_sampler(sampler: TrainingSampler, run: RunFolder, split: str) -> None:
    """Log the shape of a split's epochs and what is excluded, and leave both among the run's events."""
    logger.info("%s: %d steps per epoch. %s", split, sampler.steps_per_epoch, describe_excluded(sampler))
    excluded = {}
    for reason, utterances in sampler.excluded.items():
        excluded[reason] = len(utterances)
    run.append_event(
        "plan_opened",
        split=split,
        steps_per_epoch=sampler.steps_per_epoch,
        utterances=len(sampler.shard),
        # Runs of earlier versions have it as left_out.
        excluded=excluded,
    )
