"""Several kernels of the depthwise convolution: their sum, each layer's mixture, and the kernel that they become."""

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional

from model.costs.flops import count_parts, forward_operations
from model.encoder import EncoderConfig
from model.layers.convolution import ConvolutionModule
from model.layers.depthwise import ViewConfig, ViewMixture
from model.merging import merge_views
from model.recognizer import Recognizer, RecognizerConfig
from model.upcycle import initialize_from_teacher

VIEWS = ({"kernel_size": 3}, {"kernel_size": 5, "dilation": 2}, {"kernel_size": 1})
SHAPE = {"layers": 4, "groups": 2, "width": 16, "heads": 2, "feedforward_width": 16, "kernel_size": 11}
SHAPES = {
    "shared": {},
    "not shared": {"groups": None},
    "causal": {"causal_convolution": True},
    "BatchNorm": {"convolution_norm": "batch"},
    "experts": {"experts": {"count": 2}},
    "norms of groups": {"norms": "group"},
}


def build(**changes) -> Recognizer:
    torch.manual_seed(3)
    values = {**SHAPE, "convolution_views": VIEWS, "dropout": 0.0, **changes}
    recognizer = Recognizer(RecognizerConfig(encoder=EncoderConfig.model_validate(values)), 80, 12)
    with torch.no_grad():
        for layer in recognizer.encoder.layers:
            if layer.kernel is not None:
                layer.kernel.weight.uniform_(-1, 1)
    return recognizer.eval()


def logits(recognizer: Recognizer) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    features = torch.randn(2, 60, 80, generator=generator)
    return recognizer(features, torch.tensor([60, 41])).ctc_BSV


@pytest.mark.parametrize("causal", [False, True])
def test_it_is_the_sum_of_dilated_convolutions_with_its_gradients(causal):
    torch.manual_seed(2)
    views = tuple(ViewConfig.model_validate(view) for view in VIEWS)
    module = ConvolutionModule(6, 11, causal, views=views).double()
    mixture = ViewMixture(6, len(views)).double()
    mixture.weight.data.uniform_(-1, 1)
    x_BTD = torch.randn(2, 20, 6, dtype=torch.float64, requires_grad=True)
    padded = functional.pad(x_BTD, (0, 0, 10, 0)) if causal else x_BTD
    parameters = [x_BTD, mixture.weight, module.depthwise.bias, *module.depthwise.taps]

    actual = module._convolve(padded, mixture)
    expected = module.depthwise.bias.expand_as(x_BTD)
    for view, taps_DK, weight_D in zip(views, module.depthwise.taps, mixture.weight, strict=True):
        left = view.span - 1 if causal else view.span // 2
        signal = functional.pad(x_BTD.transpose(1, 2), (left, view.span - 1 - left))
        heard = functional.conv1d(signal, taps_DK[:, None], dilation=view.dilation, groups=6)
        expected = expected + weight_D * heard.transpose(1, 2)
    torch.testing.assert_close(actual, expected)

    weights = torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad((actual * weights).sum(), parameters),
        torch.autograd.grad((expected * weights).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_merged_into_one_kernel_of_each_layer_a_model_gives_the_same(shape):
    recognizer = build(**SHAPES[shape])
    merged = merge_views(recognizer)
    assert merged.config.encoder.convolution_views == ()
    torch.testing.assert_close(logits(merged), logits(recognizer), atol=1e-6, rtol=0)
    assert merge_views(merged) is merged
    # A pass through the encoder costs the same, however the kernel came about.
    operations = forward_operations(recognizer, 100, 10)
    assert forward_operations(merged, 100, 10) == operations


@torch.no_grad()
def test_each_layer_of_a_shared_block_mixes_the_views_in_its_own_way():
    recognizer = build(groups=1)
    before = logits(recognizer)
    layers = recognizer.encoder.layers
    layers[2].kernel.weight[1] = 0
    assert not torch.equal(logits(recognizer), before)
    parts = count_parts(recognizer)["convolution"]
    taps = 16 * (3 + 5 + 1)
    assert parts.unique == 16 * 32 + 32 + 16 * 16 + 16 + taps + 16 + 4 * 3 * 16


def test_views_are_drawn_with_the_variance_of_one_kernel():
    torch.manual_seed(1)
    x_BTD = torch.randn(4, 200, 512)
    one = ConvolutionModule(512, 31)
    views = ConvolutionModule(512, 31, views=(ViewConfig(kernel_size=15), ViewConfig(kernel_size=7, dilation=5)))
    with torch.no_grad():
        expected = one._convolve(x_BTD, None).var()
        actual = views._convolve(x_BTD, ViewMixture(512, 2)).var()
    torch.testing.assert_close(actual, expected, rtol=0.05, atol=0)


@torch.no_grad()
def test_a_student_starts_from_a_teacher_with_the_views_and_mixtures_of_its_middle_block():
    teacher = build(groups=None)
    student = build(groups=1)
    initialize_from_teacher(student, teacher)
    for layer in student.encoder.layers:
        assert layer.kernel.weight.equal(teacher.encoder.layers[2].kernel.weight)
    taps = zip(
        student.encoder.blocks[0].convolution.depthwise.taps,
        teacher.encoder.blocks[2].convolution.depthwise.taps,
        strict=True,
    )
    assert all(one.equal(other) for one, other in taps)
    with pytest.raises(ValueError, match="convolution_views"):
        initialize_from_teacher(build(groups=1, convolution_views=()), teacher)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"convolution_views": [{"kernel_size": 3}]}, "has one kernel"),
        ({"convolution_views": [{"kernel_size": 3}, {"kernel_size": 4}]}, "which is even: choose 5"),
        ({"convolution_views": [{"kernel_size": 3}, {"kernel_size": 5, "dilation": 3}]}, "choose at least 13"),
        ({"convolution_views": VIEWS, "kernel_owner": "layer"}, "leave one of the two out"),
        ({"convolution_views": [{"kernel_size": 1}] * 5}, "at most 4"),
    ],
)
def test_views_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        EncoderConfig.model_validate({**SHAPE, **changes})
