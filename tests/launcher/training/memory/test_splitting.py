"""Parts of a micro-batch: together they are the whole, and each is no longer than its own utterances."""

import gradients
import pytest
import torch

from launcher.training.feature_batch import CleanInputs, FeatureBatch
from launcher.training.memory.splitting import split

LENGTHS = [90, 71, 40, 40, 16]


def whole() -> FeatureBatch:
    generator = torch.Generator().manual_seed(5)
    lengths_B = torch.tensor(LENGTHS)
    features_BTF = torch.randn(5, 90, gradients.MEL_BINS, generator=generator)
    for row, length in enumerate(LENGTHS):
        features_BTF[row, length:] = 0.0
    tokens_BU = torch.randint(4, gradients.VOCABULARY, (5, 6), generator=generator)
    samples_B = 160 * lengths_B + 240
    source = CleanInputs(features_BTF + 1, features_BTF[..., 0] > 0, torch.randn(5, int(samples_B[0])), samples_B)
    token_lengths_B = torch.tensor([6, 2, 4, 3, 1])
    return FeatureBatch(
        features_BTF, lengths_B, tokens_BU, token_lengths_B, source, {"t": [{"n": row} for row in range(5)]}
    )


@pytest.mark.parametrize("num_parts", [1, 2, 3, 5, 8])
def test_parts_together_are_the_whole(num_parts):
    """The rows of split(batch, n), one after the other == the rows of batch"""
    batch = whole()
    parts = split(batch, num_parts)
    assert len(parts) == num_parts
    row = 0
    for part in parts:
        if not part.lengths_B.any():
            assert part.sidecars == {"t": []}
            continue
        assert part.features_BTF.shape[1] == part.lengths_B.max()
        assert part.tokens_BU.shape[1] == part.token_lengths_B.max()
        assert part.source is not None
        assert batch.source is not None
        assert part.source.waveforms_BS.shape[1] == part.source.samples_B.max()
        for number, length in enumerate(part.lengths_B.tolist()):
            tokens = int(part.token_lengths_B[number])
            samples = int(part.source.samples_B[number])
            assert length == LENGTHS[row]
            assert part.features_BTF[number, :length].equal(batch.features_BTF[row, :length])
            assert part.source.features_BTF[number, :length].equal(batch.source.features_BTF[row, :length])
            assert part.source.masked_BT[number, :length].equal(batch.source.masked_BT[row, :length])
            assert part.source.waveforms_BS[number, :samples].equal(batch.source.waveforms_BS[row, :samples])
            assert part.tokens_BU[number, :tokens].equal(batch.tokens_BU[row, :tokens])
            assert part.sidecars["t"][number] == {"n": row}
            row += 1
    assert row == len(LENGTHS)


@pytest.mark.parametrize("num_parts", [2, 3, 8])
def test_the_losses_and_gradients_of_parts_add_up_to_those_of_the_whole(num_parts):
    """All terms but the experts' balance, which is that of the frames that are routed together."""
    recognizer, task = gradients.build()
    batch = whole()
    totals = gradients.totals()

    def run(parts: list[FeatureBatch]) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
        recognizer.zero_grad()
        sums: dict[str, float] = {}
        for part in parts:
            terms, _ = task(recognizer, part, totals, 0.0)
            terms.pop("loss/balance")
            torch.stack(list(terms.values())).sum().backward()
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + float(term.detach())
        return sums, {name: p.grad.clone() for name, p in recognizer.named_parameters() if p.grad is not None}

    expected_terms, expected = run([batch])
    terms, found = run(split(batch, num_parts))
    assert terms == pytest.approx(expected_terms, rel=1e-5)
    norm = torch.cat([gradient.flatten() for gradient in expected.values()]).norm()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-5 * (gradient.norm() + norm), name
