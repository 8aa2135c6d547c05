"""One step of a small shared-expert student: `gradients.py OUT EXPERT_PARALLEL DEEPSPEED`, as any number of ranks.

Imported, it gives the same step in plain torch, without DeepSpeed or processes.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from data.sampling.sampler import Totals
from launcher.recipe import OptimizerConfig, find_deepspeed_config
from launcher.training.expert_parallel import spread_experts
from launcher.training.feature_batch import FeatureBatch
from launcher.training.fragments import local_offsets, owned_fragments
from launcher.training.recognition_loss import RecognitionLoss
from model.decoder import DecoderConfig
from model.encoder import EncoderConfig
from model.layers.subsampling import SubsamplingConfig, output_length
from model.losses import ObjectiveConfig
from model.moe.router import ExpertsConfig, RouterConfig
from model.recognizer import Recognizer, RecognizerConfig
from model.transducer import TransducerConfig

LANES, MEL_BINS, VOCABULARY = 4, 20, 9
CLIP_NORM = 0.5
CONFIG = RecognizerConfig(
    encoder=EncoderConfig(
        layers=4,
        groups=2,
        width=16,
        heads=2,
        feedforward_width=24,
        kernel_size=5,
        dropout=0.0,
        experts=ExpertsConfig(count=4, router=RouterConfig(per_frame=2)),
        subsampling=SubsamplingConfig(channels=4),
    ),
    decoder=DecoderConfig(layers=1, heads=2, feedforward_width=24, dropout=0.0),
    transducer=TransducerConfig(width=12),
)
# The balance loss weighs as much as recognition, so that a mistake in it cannot hide.
OBJECTIVE = ObjectiveConfig(balance_weight=1.0, z_weight=0.1)
# Lanes of very different lengths; the last has ended its epoch.
LENGTHS = [[90, 71], [40], [66, 50, 49], []]


def micro_batch(lane: int) -> FeatureBatch:
    generator = torch.Generator().manual_seed(lane)
    if not LENGTHS[lane]:
        nothing = torch.zeros(1, dtype=torch.int64)
        return FeatureBatch(torch.zeros(1, 16, MEL_BINS), nothing, nothing[:, None], nothing)
    lengths = torch.tensor(LENGTHS[lane])
    features = torch.randn(len(lengths), int(lengths.max()), MEL_BINS, generator=generator)
    for row, length in enumerate(LENGTHS[lane]):
        features[row, length:] = 0.0
    tokens = torch.randint(4, VOCABULARY, (len(lengths), 5), generator=generator)
    return FeatureBatch(features, lengths, tokens, torch.randint(2, 6, (len(lengths),), generator=generator))


def totals() -> Totals:
    batches = [micro_batch(lane) for lane in range(LANES)]
    return Totals(
        utterances=sum(len(lengths) for lengths in LENGTHS),
        tokens=sum(int(batch.token_lengths_B.sum()) for batch in batches),
        frames=sum(
            output_length(length, CONFIG.encoder.subsampling.factor) for lengths in LENGTHS for length in lengths
        ),
    )


def build() -> tuple[Recognizer, RecognitionLoss]:
    torch.manual_seed(3)
    return Recognizer(CONFIG, MEL_BINS, VOCABULARY), RecognitionLoss(OBJECTIVE, CONFIG.encoder)


def reference() -> dict[str, torch.Tensor]:
    """The gradients of the whole step, from one plain model."""
    recognizer, task = build()
    for lane in range(LANES):
        parts, _ = task(recognizer, micro_batch(lane), totals(), 0.0)
        torch.stack(list(parts.values())).sum().backward()
    return {name: p.grad for name, p in recognizer.named_parameters() if p.grad is not None}


def train_step(engine, task: RecognitionLoss, lanes: range) -> float:
    """One update from this process's lanes; the loss of the step over all processes."""
    loss = torch.zeros(())
    for lane in lanes:
        parts, _ = task(engine, micro_batch(lane), totals(), 0.0)
        total = torch.stack(list(parts.values())).sum()
        engine.backward(total * LANES)
        engine.step()
        loss += total.detach()
    torch.distributed.all_reduce(loss)
    return loss.item()


def main(out: Path, expert_parallel: int, deepspeed: str) -> None:
    import torch.distributed as dist
    from deepspeed.utils import safe_get_full_grad

    from launcher.training import parallel

    parallel.start_processes(60)
    rank, world = dist.get_rank(), dist.get_world_size()
    recognizer, task = build()
    spread_experts(recognizer, expert_parallel, rank)
    lanes = range(rank, LANES, world)
    optimizer = OptimizerConfig(clip_norm=CLIP_NORM)
    engine = parallel.build_engine(recognizer, optimizer, find_deepspeed_config(deepspeed), len(lanes), "fp32")
    for index, lane in enumerate(lanes):
        parts, _ = task(engine, micro_batch(lane), totals(), 0.0)
        engine.backward(torch.stack(list(parts.values())).sum() * LANES)
        if index < len(lanes) - 1:
            engine.step()
    starts = local_offsets(engine.module)
    gradients = {
        name: (starts[name], safe_get_full_grad(parameter).clone())
        for name, parameter in engine.module.named_parameters()
    }
    engine.step()
    norm = parallel.gradient_norm(engine)
    fragments = [fragment for fragment in owned_fragments(engine) if fragment.writes]
    result = {
        "gradients": gradients,
        "norm": norm,
        # AdamW's first moment after one step is a share of the gradient that clipping left.
        "clipped": sum(fragment.state["exp_avg"].square().sum().item() for fragment in fragments)
        / (1 - optimizer.betas[0]) ** 2,
    }
    torch.save(result, out / f"rank-{rank}.pt")
    dist.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    dist.destroy_process_group()  # gloo's threads may abort a process that ends with them
