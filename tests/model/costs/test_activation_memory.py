"""What a forward pass is said to keep against the storages that torch keeps."""

import weakref

import pytest
import torch
from torch import nn

from data.sampling.sampler import Totals
from launcher.training.feature_batch import FeatureBatch
from launcher.training.recognition_loss import RecognitionLoss
from model.costs.activation_memory import MicroBatchSize, activation_bytes, is_known
from model.decoder import DecoderConfig
from model.encoder import EncoderConfig
from model.losses import ObjectiveConfig
from model.recognizer import Recognizer, RecognizerConfig
from model.transducer import TransducerConfig

MEL_BINS, VOCABULARY = 20, 30


class Saved:
    """A saved tensor whose fate can be watched."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor


def build(config: RecognizerConfig) -> Recognizer:
    torch.manual_seed(0)
    return Recognizer(config, MEL_BINS, VOCABULARY).train()


def config(
    decoder: DecoderConfig | None = None,
    transducer: TransducerConfig | None = None,
    intermediate: tuple[int, ...] = (),
    **encoder,
) -> RecognizerConfig:
    values = {"layers": 4, "width": 32, "heads": 2, "feedforward_width": 64, "kernel_size": 5}
    return RecognizerConfig(
        encoder=EncoderConfig.model_validate({**values, "subsampling": {"channels": 8}, **encoder}),
        decoder=decoder,
        transducer=transducer,
        intermediate_ctc=intermediate,
    )


def measured(recognizer: Recognizer, size: MicroBatchSize, autocast: bool) -> int:
    """Bytes of the distinct storages, weights aside, that are still there for the backward pass of a step's loss."""
    alive: weakref.WeakSet[Saved] = weakref.WeakSet()

    def pack(tensor: torch.Tensor) -> Saved:
        saved = Saved(tensor)
        alive.add(saved)
        return saved

    batch = FeatureBatch(
        torch.randn(size.utterances, size.frames, MEL_BINS),
        torch.full((size.utterances,), size.frames),
        torch.randint(4, VOCABULARY, (size.utterances, size.tokens)),
        torch.full((size.utterances,), size.tokens),
    )
    task = RecognitionLoss(ObjectiveConfig(), recognizer.config.encoder)
    totals = Totals(utterances=size.utterances, tokens=1, frames=1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            parts, _ = task(recognizer, batch, totals, 0.0)
        loss = torch.stack(list(parts.values())).sum()
    weights = {parameter.untyped_storage().data_ptr() for parameter in recognizer.parameters()}
    storages = [saved.tensor.untyped_storage() for saved in alive]
    assert loss.requires_grad
    return sum({s.data_ptr(): s.nbytes() for s in storages if s.data_ptr() not in weights}.values())


def experts(count: int, per_frame: int, **router) -> dict:
    return {"count": count, "router": {"per_frame": per_frame, **router}}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    ("model", "size"),
    [
        (config(dropout=0.0), MicroBatchSize(3, 200, 8)),
        (config(dropout=0.0, subsampling={"channels": 8, "factor": 6}), MicroBatchSize(2, 500, 8)),
        (config(dropout=0.0, subsampling={"channels": 32, "convolutions": "full"}), MicroBatchSize(3, 300, 8)),
        (config(dropout=0.0, subsampling={"channels": 32, "convolutions": "separable"}), MicroBatchSize(3, 300, 8)),
        (config(dropout=0.2, intermediate=(0, 1)), MicroBatchSize(2, 401, 20)),
        (config(DecoderConfig(layers=2, heads=2, feedforward_width=48), kernel_size=15), MicroBatchSize(2, 400, 40)),
        (
            config(DecoderConfig(layers=1, heads=2, feedforward_width=48, right_to_left_layers=2)),
            MicroBatchSize(2, 400, 40),
        ),
        (config(groups=1, experts=experts(4, 1), dropout=0.0), MicroBatchSize(2, 400, 10)),
        (config(groups=2, experts=experts(3, 2, jitter=0.1), sharing="cyclic"), MicroBatchSize(1, 800, 30)),
        (
            config(
                DecoderConfig(layers=1),
                width=128,
                heads=4,
                feedforward_width=512,
                groups=1,
                experts=experts(4, 1),
            ),
            MicroBatchSize(2, 800, 30),
        ),
    ],
)
def test_a_forward_pass_keeps_what_the_plan_says(model, size, autocast):
    """|estimate - sum of distinct saved storages| <= 0.1 sum."""
    recognizer = build(model)
    estimate = activation_bytes(recognizer, size, value_bytes=2 if autocast else 4)
    assert estimate == pytest.approx(measured(recognizer, size, autocast), rel=0.1)


def test_running_layers_again_keeps_their_inputs_alone():
    plain, size = config(layers=6, groups=1), MicroBatchSize(2, 400, 10)
    again = plain.model_copy(update={"encoder": plain.encoder.model_copy(update={"activation_checkpointing": True})})
    one_layer = activation_bytes(build(config(layers=2, groups=1)), size) - activation_bytes(
        build(config(layers=1, groups=1)), size
    )
    # The estimate adds the one layer that is being run again, which the forward pass has not kept yet.
    expected = activation_bytes(build(again), size) - one_layer
    assert measured(build(again), size, autocast=False) == pytest.approx(expected, rel=0.1)


def test_a_transducer_adds_one_utterances_joint_tensor_whatever_the_batch():
    def added(utterances: int) -> int:
        size = MicroBatchSize(utterances, 400, 20)
        beside = build(config(transducer=TransducerConfig(width=16)))
        return activation_bytes(beside, size) - activation_bytes(build(config()), size)

    joint = 100 * 21 * 4 * (2 * 16 + 2 * VOCABULARY)
    assert joint < added(1) < added(8) < 2 * joint


def test_a_model_with_more_in_its_blocks_is_not_guessed_at():
    recognizer = build(config())
    assert is_known(recognizer)
    recognizer.encoder.blocks[1].add_module("adapter", nn.Linear(32, 32))
    assert not is_known(recognizer)
    for option in ({"positions": "relative"}, {"convolution_norm": "batch"}, {"causal_convolution": True}):
        assert not is_known(build(config(**option)))
    assert not is_known(build(config(stochastic_depth=0.1)))
    for option in ({"placement": "both"}, {"residual": True}, {"capacity_factor": 1.5}):
        assert not is_known(build(config(experts={"count": 2, **option})))
