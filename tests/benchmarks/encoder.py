"""The dense encoder against torchaudio's Conformer: `python -m tests.benchmarks.encoder [--rounds N]`, or, as two
processes with one thread each, `torchrun --nproc-per-node 2 -m tests.benchmarks.encoder`. `--device cuda` for a GPU.

Twelve layers of width 256, 4 heads, feed-forward width 1024, kernel 15, on 8 utterances of 5 to 16 s; the layers
alone, and behind a front-end: ours for both, and for torchaudio also the one that conformers commonly have, two full
convolutions of 256 channels. Training is forward and backward. The limit is the speed at which the products of our
layers would be done if each were as fast as one of 2,000 x 256 by 256 x 1,024 that is measured beside them.
"""

import argparse
from collections.abc import Callable

import torch
import torchaudio
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from model.block import Frames
from model.encoder import Encoder, EncoderConfig
from model.layers.subsampling import ConvolutionSubsampling, SubsamplingConfig, valid_mask
from tests.benchmarks.interleaved import join_processes, leave_processes, step_of, tell, time_in_turns

MEL_BINS, FRAMES_PER_S = 80, 100
SECONDS = (5.0, 6.5, 8.0, 9.5, 11.0, 12.5, 14.0, 16.0)
PRODUCTS, LIMIT = 50, "layers, the limit of products"
CONFIG = EncoderConfig(layers=12, width=256, heads=4, feedforward_width=1024, kernel_size=15, dropout=0.0)


class CommonFrontEnd(nn.Module):
    """Two full 3x3 convolutions of stride 2 with as many channels as the model is wide, and a projection."""

    def __init__(self, width: int):
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, 2, padding=1)
        self.second = nn.Conv2d(width, width, 3, 2, padding=1)
        self.projection = nn.Linear(width * (MEL_BINS // 4), width)

    def forward(self, features_BTF: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.second(torch.relu(self.first(features_BTF.unsqueeze(1)))))
        return self.projection(x.transpose(1, 2).flatten(2)), (lengths_B + 3) // 4


def build_torchaudio() -> nn.Module:
    return torchaudio.models.Conformer(
        input_dim=CONFIG.width,
        num_heads=CONFIG.heads,
        ffn_dim=CONFIG.feedforward_width,
        num_layers=CONFIG.layers,
        depthwise_conv_kernel_size=CONFIG.kernel_size,
        dropout=0.0,
    )


def our_layers(encoder: Encoder, frames_BSD: Tensor, lengths_B: Tensor) -> Tensor:
    valid_BS = valid_mask(lengths_B, frames_BSD.shape[1])
    frames = Frames.from_valid(valid_BS, encoder.encode_positions(frames_BSD.shape[1]))
    return frames.packing.pad(encoder.run_layers(frames.packing.pack(frames_BSD), frames)[-1].frames_ND)


def measure(training: bool, precision: str, rounds: int, device: str) -> dict[str, float]:
    """Audio seconds per second of every variant, on each process."""
    torch.manual_seed(1)
    lengths_B = torch.tensor([round(seconds * FRAMES_PER_S) for seconds in SECONDS], device=device)
    features_BTF = torch.randn(len(lengths_B), int(lengths_B.max()), MEL_BINS, device=device)
    short_B = (lengths_B + 3) // 4
    frames_BSD = torch.randn(len(short_B), int(short_B.max()), CONFIG.width, device=device)
    ours, theirs = Encoder(CONFIG, MEL_BINS), build_torchaudio()
    same, common = ConvolutionSubsampling(SubsamplingConfig(), MEL_BINS, CONFIG.width), CommonFrontEnd(CONFIG.width)
    for module in (ours, theirs, same, common):
        module.to(device).train(training)

    def run(forward: Callable[[], Tensor]) -> Callable[[], None]:
        return step_of(forward, precision, training, device)

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    rows = torch.randn(2000, CONFIG.width, dtype=dtype, device=device)
    columns = torch.randn(CONFIG.width, CONFIG.feedforward_width, dtype=dtype, device=device)
    layers = run(lambda: our_layers(ours, frames_BSD, short_B))
    with FlopCounterMode(display=False) as counter:
        layers()
    times = time_in_turns(
        {
            "layers, torchaudio": run(lambda: theirs(frames_BSD, short_B)[0]),
            "layers, ours": layers,
            "with our front-end, torchaudio": run(lambda: theirs(*same(features_BTF, lengths_B))[0]),
            "with a common front-end, torchaudio": run(lambda: theirs(*common(features_BTF, lengths_B))[0]),
            "with our front-end, ours": run(lambda: ours(features_BTF, lengths_B).frames_BSD),
            LIMIT: lambda: [rows @ columns for _ in range(PRODUCTS)],
        },
        rounds,
    )
    times[LIMIT] *= counter.get_total_flops() / (PRODUCTS * 2 * rows.shape[0] * columns.numel())
    return {name: sum(SECONDS) / seconds for name, seconds in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    processes = join_processes()
    tell("| | | variant | audio s per s | over torchaudio |\n|---|---|---|---:|---:|")
    for training in (True, False):
        for precision in ("fp32", "bf16"):
            speeds = measure(training, precision, options.rounds, options.device)
            for name, speed in speeds.items():
                against = "layers, torchaudio" if name.startswith("layers") else "with our front-end, torchaudio"
                place = f"| {'training' if training else 'inference'} | {precision} | {name} "
                tell(f"{place}| {processes * speed:.1f} | {speed / speeds[against]:.2f} |")
    leave_processes()


if __name__ == "__main__":
    main()
