"""Where a training step would make the host wait for a GPU."""

from collections import Counter

import pytest
import torch
from host_syncs import HostSyncs

from data.sampling.sampler import Totals
from launcher.training.feature_batch import FeatureBatch
from launcher.training.metrics import all_reduce_metrics, routing_metrics
from launcher.training.recognition_loss import RecognitionLoss
from model.decoder import DecoderConfig
from model.encoder import EncoderConfig
from model.layers.attention import SelfAttention
from model.losses import ObjectiveConfig
from model.moe.experts import ExpertStack
from model.moe.router import ExpertsConfig, RouterConfig
from model.recognizer import Recognizer, RecognizerConfig
from model.transducer import TransducerConfig

# Once for each micro-batch: how many frames are valid.
OF_BATCHES = {"model/layers/packing.py __init__: nonzero": 1}
# CTC takes lengths on the host.
OF_CTC = {"model/losses.py ctc_sum: _ctc_loss": 1}
# The length of each utterance, in frames and in tokens.
OF_TRANSDUCER = {"model/transducer.py forward: tolist": 2}
# Once for each step: what all processes agree on.
OF_METRICS = {"launcher/training/metrics.py all_reduce_metrics: tolist": 1}
LAYERS = 4


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Branches are those of a GPU in bf16; the tensors are not."""
    monkeypatch.setattr(ExpertStack, "is_grouped", lambda *_: True)
    monkeypatch.setattr(SelfAttention, "splits_utterances", False)
    monkeypatch.setattr("launcher.training.metrics.dist.all_reduce", lambda _: None)


def step_syncs(experts: ExpertsConfig | None, *, transducer: bool = False) -> Counter[str]:
    """The places of a step: forward, backward, metrics."""
    encoder = EncoderConfig(
        layers=LAYERS,
        groups=2,
        width=16,
        heads=2,
        feedforward_width=16,
        kernel_size=3,
        experts=experts,
    )
    config = RecognizerConfig(
        encoder=encoder,
        decoder=DecoderConfig(layers=1, heads=2, feedforward_width=16, right_to_left_layers=1),
        transducer=TransducerConfig(width=16) if transducer else None,
    )
    torch.manual_seed(0)
    model = Recognizer(config, 80, 20).train()
    loss = RecognitionLoss(ObjectiveConfig(), encoder)
    batch = FeatureBatch(
        torch.randn(3, 120, 80),
        torch.tensor([120, 80, 60]),
        torch.randint(4, 20, (3, 8)),
        torch.tensor([8, 5, 3]),
    )
    with HostSyncs() as syncs:
        terms, output = loss(model, batch, Totals(utterances=3, tokens=16, frames=65), 0.5)
        torch.stack(list(terms.values())).sum().backward()
        metrics = {name: term.detach() for name, term in terms.items()}
        metrics |= routing_metrics(output.encoder.routings, encoder.routing_names)
        all_reduce_metrics(metrics, torch.device("cpu"))
    return syncs.places


def only(*allowed: dict[str, int]) -> Counter[str]:
    """The places that are allowed, and no other."""
    places: Counter[str] = Counter()
    for part in allowed:
        places |= Counter(part)
    return places


@pytest.mark.parametrize(
    "experts",
    [
        None,
        ExpertsConfig(count=4),
        ExpertsConfig(count=4, router=RouterConfig(per_frame=2), placement="both", balance="first_choice"),
        ExpertsConfig(count=4, router=RouterConfig(per_frame=2, jitter=0.1), capacity_factor=1.0),
        ExpertsConfig(count=4, residual=True, capacity_factor=0.5, balance_scope="group"),
        ExpertsConfig(count=4, router=RouterConfig(scope="conditioned", bias_rate=0.01)),
    ],
    ids=str,
)
@pytest.mark.usefixtures("as_on_a_gpu")
def test_the_host_waits_for_no_expert(experts):
    """However many layers have experts, a step waits as often as that of a model without any."""
    assert step_syncs(experts) == only(OF_BATCHES, OF_CTC, OF_METRICS)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_transducer_waits_once_for_the_lengths_of_its_utterances():
    assert step_syncs(None, transducer=True) == only(OF_BATCHES, OF_CTC, OF_TRANSDUCER, OF_METRICS)


def test_a_loop_over_experts_is_seen_to_wait_in_every_layer(as_on_a_gpu, monkeypatch):
    monkeypatch.setattr(ExpertStack, "is_grouped", lambda *_: False)
    places = step_syncs(ExpertsConfig(count=4))
    assert places["model/moe/experts.py forward: tolist"] == LAYERS


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: bool(x.sum() > 0), "_local_scalar_dense"),
        (lambda x: x.tolist(), "tolist"),
        (lambda x: x.cpu(), "cpu"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x[x > 0], "index"),
        (lambda x: torch.bincount(x), "bincount"),
        (lambda x: x.repeat_interleave(x), "repeat_interleave"),
        (lambda x: x.masked_select(x > 0), "masked_select"),
        (lambda x: x.unique(), "_unique2"),
    ],
)
def test_each_way_to_wait_is_counted(operation, name):
    with HostSyncs() as syncs:
        operation(torch.tensor([1, 2, 0]))
    assert syncs.places[f"elsewhere: {name}"] >= 1


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x[torch.tensor([2, 0])],
        lambda x: x.repeat_interleave(x, output_size=3),
        lambda x: torch.where(x > 0, x, 0),
        lambda x: x.argsort(stable=True),
    ],
)
def test_what_does_not_wait_is_not_counted(operation):
    with HostSyncs() as syncs:
        operation(torch.tensor([1, 2, 0]))
    assert not syncs.places
