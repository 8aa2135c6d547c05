"""Parameters against tensors counted one by one, operations against what torch counts while a model runs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model.costs.flops import count_parameters, count_parts, encoder_operations, forward_operations, training_operations
from model.decoder import DecoderConfig
from model.encoder import EncoderConfig
from model.moe.experts import MixtureOfExperts
from model.recognizer import Recognizer, RecognizerConfig
from model.transducer import TransducerConfig

MEL_BINS, VOCABULARY = 20, 30


def build(transducer: bool = False, decoder: int = 0, intermediate: tuple[int, ...] = (), **encoder) -> Recognizer:
    values = {"layers": 4, "width": 32, "heads": 2, "feedforward_width": 64, "kernel_size": 5, "dropout": 0.0}
    config = RecognizerConfig(
        encoder=EncoderConfig.model_validate({**values, "subsampling": {"channels": 8}, **encoder}),
        decoder=DecoderConfig(
            layers=decoder, heads=2, feedforward_width=48, dropout=0.0, right_to_left_layers=decoder // 2
        )
        if decoder
        else None,
        transducer=TransducerConfig(width=24) if transducer else None,
        intermediate_ctc=intermediate,
    )
    torch.manual_seed(0)
    return Recognizer(config, MEL_BINS, VOCABULARY)


def experts(count: int, per_frame: int) -> dict:
    return {"count": count, "router": {"per_frame": per_frame}}


def batch(num_frames: int, num_tokens: int) -> tuple[torch.Tensor, ...]:
    tokens = torch.randint(4, VOCABULARY, (1, num_tokens))
    return torch.randn(1, num_frames, MEL_BINS), torch.tensor([num_frames]), tokens, torch.tensor([num_tokens])


def convolution_backward(gradient_shape, x_shape, weight_shape, *arguments, out_shape=None, **options) -> int:
    """As many operations as the forward pass for each gradient asked for. Torch's own formula takes the weight gradient
    of a depthwise convolution for that of a full one."""
    forward = 2 * math.prod(weight_shape) * gradient_shape[0] * math.prod(gradient_shape[2:])
    return forward * sum(arguments[-1][:2])


def count_operations(compute) -> int:
    """What torch counts; attention written out as products, because torch does not count the fused kernel of CPUs."""
    formulas = {torch.ops.aten.convolution_backward: convolution_backward}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        compute()
    return counter.get_total_flops()


EXPERTS = st.builds(
    lambda sizes, scope, placement, residual: {
        "count": sizes[0],
        "placement": placement,
        "residual": residual,
        "router": {"per_frame": sizes[1], "scope": scope},
    },
    st.sampled_from([(4, 1), (3, 2)]),
    st.sampled_from(["layer", "group", "global", "conditioned"]),
    st.sampled_from(["first", "second", "both"]),
    st.booleans(),
)
MODELS = st.fixed_dictionaries(
    {
        "layers": st.sampled_from([2, 4]),
        "groups": st.sampled_from([1, 2]),
        "norms": st.sampled_from(["layer", "group"]),
        "sharing": st.sampled_from(["contiguous", "cyclic"]),
        "width": st.sampled_from([16, 40]),
        "kernel_size": st.sampled_from([3, 15]),
        "positions": st.sampled_from(["rotary", "relative", "none"]),
        "convolution_norm": st.sampled_from(["layer", "batch"]),
        "causal_convolution": st.booleans(),
        "subsampling": st.fixed_dictionaries(
            {
                "channels": st.just(8),
                "factor": st.sampled_from([4, 6, 8]),
                "convolutions": st.sampled_from(["separable", "full"]),
            }
        ),
        "experts": st.none() | EXPERTS,
        "decoder": st.sampled_from([0, 1, 3]),
        "transducer": st.booleans(),
    }
)


@settings(deadline=None, max_examples=30)
@given(model=MODELS, num_frames=st.integers(40, 400), num_tokens=st.integers(1, 30))
def test_the_operations_of_a_forward_pass_are_those_that_torch_counts(model, num_frames, num_tokens):
    """|sum of parts - counted| <= 0.02 counted, for the whole model and for its encoder."""
    recognizer = build(**model).eval()
    inputs = batch(num_frames, num_tokens)
    with torch.no_grad():
        counted = count_operations(lambda: recognizer(*inputs))
        of_encoder = count_operations(lambda: recognizer.encoder(*inputs[:2]))
    assert sum(forward_operations(recognizer, num_frames, num_tokens).values()) == pytest.approx(counted, rel=0.02)
    assert encoder_operations(recognizer, num_frames) == pytest.approx(of_encoder, rel=0.02)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "model",
    [
        {"groups": 2, "experts": experts(4, 1)},
        {"decoder": 2, "intermediate": (1,)},
        {"experts": experts(3, 2), "groups": 1, "transducer": True},
    ],
)
def test_a_training_step_costs_three_forward_passes_and_one_more_of_what_is_computed_again(model, checkpointing):
    recognizer = build(**model, activation_checkpointing=checkpointing)
    inputs = batch(300, 20)

    def step() -> None:
        output = recognizer(*inputs)
        parts = [output.ctc_BSV, output.decoder_BUV, output.reverse_BUV, output.transducer_B, *output.intermediate]
        torch.stack([part.sum() for part in parts if part is not None]).sum().backward()

    # The first convolution hands no gradient to the features: its backward pass costs one forward, not two.
    assert training_operations(recognizer, 300, 20) == pytest.approx(count_operations(step), rel=0.02)


def test_a_teacher_adds_its_forward_pass():
    student, teacher = build(groups=1, experts=experts(4, 1)), build(decoder=1)
    both = training_operations(student, 200, 10, [teacher])
    assert both - training_operations(student, 200, 10) == sum(forward_operations(teacher, 200, 10).values())


def test_a_model_that_reads_no_tokens_computes_nothing_with_them():
    operations = forward_operations(build(decoder=1, transducer=True), 200, 0)
    assert operations["decoder"] == operations["transducer"] == 0
    assert operations["ctc"] > 0


@settings(deadline=None, max_examples=20)
@given(model=MODELS)
def test_the_parts_are_the_whole_and_each_tensor_is_in_one_of_them(model):
    """sum over parts of unique = parameters; effective and activated of the encoder = use by use, tensor by tensor."""
    recognizer = build(**model)
    parts = count_parts(recognizer)
    assert sum(part.unique for part in parts.values()) == sum(p.numel() for p in recognizer.parameters())
    encoder = recognizer.encoder
    shared = ("blocks.", "layers.", "groups.", "common.")
    effective = activated = sum(p.numel() for name, p in encoder.named_parameters() if not name.startswith(shared))
    for layer, block in zip(encoder.layers, encoder.config.block_of_layer, strict=True):
        owned = [p for module in (*layer.norms().values(), *layer.routers()) for p in module.parameters()]
        rows = sum(p.numel() * (encoder.config.layers - 1) // encoder.config.layers for p in embeddings(layer))
        effective += sum(p.numel() for p in owned) - rows
        activated += sum(p.numel() for p in owned) - rows
        for name, parameter in encoder.blocks[block].named_parameters():
            effective += parameter.numel()
            if ".experts." in name:
                activated += parameter[0].numel() * model["experts"]["router"]["per_frame"]
            else:
                activated += parameter.numel()
    counts = count_parameters(recognizer)
    assert counts.effective_encoder_parameters == effective
    assert counts.activated_encoder_parameters == activated
    assert counts.encoder_parameters == sum(p.numel() for p in encoder.parameters())


def embeddings(layer) -> list[torch.Tensor]:
    """Of which a layer uses one row."""
    return [router.embedding for router in layer.routers() if router.embedding is not None]


def test_each_part_holds_what_its_name_says():
    recognizer = build(groups=2, experts=experts(4, 1), decoder=1, transducer=True)
    parts, encoder = count_parts(recognizer), recognizer.encoder
    stacks = [module for module in encoder.modules() if isinstance(module, MixtureOfExperts)]
    norms = [module for module in encoder.layers.modules() if isinstance(module, nn.LayerNorm)]

    def size(modules) -> int:
        return sum(p.numel() for module in modules for p in module.parameters())

    assert parts["experts"].unique == size(stacks)
    assert parts["experts"].effective == 2 * size(stacks)
    assert parts["experts"].activated == 2 * size(stacks) // 4
    assert parts["norms"].unique == parts["norms"].effective == parts["norms"].activated == size(norms)
    assert parts["routers"].unique == 4 * 4 * 32
    assert parts["feedforward"].unique == size(block.feedforward1 for block in encoder.blocks)
    assert parts["decoder"].activated == parts["decoder"].unique - (VOCABULARY - 1) * 32
    assert parts["transducer"].activated == parts["transducer"].unique - (VOCABULARY - 1) * 24


def test_everything_is_counted_without_storage():
    with torch.device("meta"):
        on_meta = build(groups=2, experts=experts(4, 2), decoder=1, transducer=True)
    stored = build(groups=2, experts=experts(4, 2), decoder=1, transducer=True)
    assert count_parts(on_meta) == count_parts(stored)
    assert training_operations(on_meta, 200, 10) == training_operations(stored, 200, 10)


def test_a_module_that_is_not_known_is_named_rather_than_guessed():
    class Unknown(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

    recognizer = build()
    attention = recognizer.encoder.blocks[0].attention
    attention.register_parameter("bias", nn.Parameter(torch.ones(3)))
    with pytest.raises(TypeError, match="operations of SelfAttention are not known"):
        forward_operations(recognizer, 100, 0)
    recognizer.encoder.blocks[0].attention = Unknown()
    with pytest.raises(TypeError, match="operations of Unknown are not known"):
        forward_operations(recognizer, 100, 0)
