"""What rows tell about layers: each number is what its name says, whatever the lanes, and off it costs nothing."""

import gradients
import pytest
import torch

from launcher.training.layer_metrics import LayerProbe, effective_rank, layer_row
from launcher.training.metrics import StepMetrics, add_metrics


def probe_step(lanes=range(gradients.LANES), num_processes=1):
    """The row of one step of the small student, its lanes one after the other; and each lane's encoder output."""
    model, loss = gradients.build()
    totals = gradients.totals()
    metrics: StepMetrics = {}
    outputs = []
    for lane in lanes:
        terms, output = loss(model, gradients.micro_batch(lane), totals, 0.0)
        probe = LayerProbe(output.encoder, totals.frames)
        for layer in range(len(output.encoder.layers)):
            output.encoder.layers.packed(layer).retain_grad()
        torch.stack(list(terms.values())).sum().backward()
        add_metrics(metrics, probe.metrics)
        outputs.append(output.encoder)
    scalars = {name: float(value) for name, value in metrics.items()}
    return layer_row(scalars, num_processes), outputs


def test_the_gradient_norm_of_a_layer_is_that_of_its_output_over_all_lanes():
    row, outputs = probe_step()
    for layer in range(gradients.CONFIG.encoder.layers):
        squares = [output.layers.packed(layer).grad.square().sum() for output in outputs]
        assert row[f"layers/layer-{layer:02d}/gradient_norm"] == pytest.approx(float(sum(squares)) ** 0.5, rel=1e-5)
    assert not any(name.endswith("squared_gradient") for name in row)


def test_gradients_of_several_processes_are_those_of_one():
    """Every process computes gradients as many times too large as there are processes, for the engine to average."""
    name = "layers/layer-01/gradient_norm"
    assert probe_step(num_processes=4)[0][name] == pytest.approx(probe_step()[0][name] / 4)


def test_the_cosine_of_a_layer_is_the_mean_over_the_frames_of_all_lanes():
    row, outputs = probe_step()
    for layer in range(gradients.CONFIG.encoder.layers):
        cosines = []
        for output in outputs:
            before_ND = output.input_ND if layer == 0 else output.layers.packed(layer - 1)
            cosines.append(torch.cosine_similarity(before_ND, output.layers.packed(layer), dim=-1).detach())
        assert row[f"layers/layer-{layer:02d}/cosine"] == pytest.approx(float(torch.cat(cosines).mean()), rel=1e-5)


def test_the_rank_of_a_step_is_its_lanes_mean_weighted_by_their_frames():
    row, outputs = probe_step()
    frames = [output.layers.packed(len(output.layers) - 1).detach() for output in outputs]
    ranks = [float(effective_rank(frames_ND)) for frames_ND in frames]
    counts = [len(frames_ND) for frames_ND in frames]
    expected = sum(rank * count for rank, count in zip(ranks, counts, strict=True)) / sum(counts)
    assert row["layers/rank"] == pytest.approx(expected, rel=1e-5)


def test_a_lane_without_frames_changes_nothing():
    with_empty_lane, _ = probe_step()
    without, _ = probe_step(lanes=[0, 1, 2])
    assert gradients.LENGTHS[3] == []
    assert with_empty_lane == pytest.approx(without, rel=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_frames_that_differ_alike_in_so_many_directions_have_that_rank(rank):
    directions, _ = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * rank).view(-1, rank)
    # The mean is no difference between frames.
    frames = signs @ directions[:rank] + torch.full((8,), 10.0)
    assert float(effective_rank(frames)) == pytest.approx(rank, rel=1e-3)


@pytest.mark.parametrize(("frames", "rank"), [(torch.zeros(0, 4), 0), (torch.ones(1, 4), 0), (torch.ones(6, 4), 1)])
def test_frames_that_do_not_differ_have_a_rank_that_is_a_number(frames, rank):
    assert float(effective_rank(frames)) == pytest.approx(rank)


def test_scalars_of_other_kinds_stay_where_they_are():
    scalars = {"loss": 1.0, "layers/rank": 2.0, "layers/layer-00/squared_gradient": 9.0}
    assert layer_row(scalars, 1) == {"layers/rank": 2.0, "layers/layer-00/gradient_norm": 3.0}
    assert scalars == {"loss": 1.0}
