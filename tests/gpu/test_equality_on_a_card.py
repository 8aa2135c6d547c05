"""What a card computes is what the processors compute: fp32 to 1e-5, bf16 to the noise of sums in another order."""

import gradients
import pytest
import torch
from torch import Tensor

from data.features import FeaturesConfig, LogMel
from launcher.training.feature_batch import FeatureBatch
from model.moe.experts import ExpertStack, build_experts
from model.moe.router import ExpertsConfig, Router, RouterConfig

CARD = "cuda"
WIDTH, HIDDEN, EXPERTS, FRAMES = 64, 128, 8, 500

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA card, which these tests need."),
]


@pytest.fixture(autouse=True)
def exact_products():
    """TF32 would round fp32 factors to ten bits."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative, over all of a tensor."""
    difference = found.detach().cpu().double() - expected.detach().cpu().double()
    return float(difference.norm() / expected.detach().cpu().double().norm().clamp(min=1e-12))


def layer_of_experts(config: ExpertsConfig, device: str, dtype: torch.dtype) -> list[Tensor]:
    """Output and gradients of a router and its experts."""
    torch.manual_seed(1)
    router = Router(WIDTH, EXPERTS, config.router, config.capacity_factor).train().to(device)
    layer = build_experts(config, WIDTH, HIDDEN).to(device)
    x_ND = torch.randn(FRAMES, WIDTH)
    weight_ND = torch.randn(FRAMES, WIDTH).to(device)
    frames_ND = x_ND.to(device).requires_grad_()
    with torch.autocast(device, dtype, enabled=dtype == torch.bfloat16):
        # Routed in fp32, so that no frame is sent elsewhere for a rounding.
        routing = router(frames_ND)
        output_ND = layer(frames_ND.to(dtype), routing)
    loss = (output_ND.float() * weight_ND).sum() + routing.balance_loss("switch")
    loss.backward()
    parameters = [*router.parameters(), *layer.parameters()]
    return [output_ND.float(), frames_ND.grad, *[parameter.grad for parameter in parameters]]


OPTIONS = [
    ExpertsConfig(count=EXPERTS),
    ExpertsConfig(count=EXPERTS, router=RouterConfig(per_frame=2)),
    ExpertsConfig(count=EXPERTS, router=RouterConfig(per_frame=2), capacity_factor=1.0),
    ExpertsConfig(count=EXPERTS, residual=True, capacity_factor=0.5),
]


@pytest.mark.parametrize("config", OPTIONS, ids=str)
def test_a_layer_of_experts_in_fp32(config):
    on_card = layer_of_experts(config, CARD, torch.float32)
    for found, expected in zip(on_card, layer_of_experts(config, "cpu", torch.float32), strict=True):
        assert distance(found, expected) < 1e-5


@pytest.mark.parametrize("config", OPTIONS, ids=str)
def test_a_layer_of_experts_in_bf16(config):
    """As far from fp32 as the processors' bf16 is, within a factor of two."""
    precise = layer_of_experts(config, "cpu", torch.float32)
    on_processors = layer_of_experts(config, "cpu", torch.bfloat16)
    on_card = layer_of_experts(config, CARD, torch.bfloat16)
    for found, rounded, expected in zip(on_card, on_processors, precise, strict=True):
        assert distance(found, expected) < 2 * distance(rounded, expected) + 1e-3


def test_bf16_experts_are_one_grouped_product_and_the_host_waits_for_none():
    router = Router(WIDTH, EXPERTS, RouterConfig(per_frame=2), capacity_factor=1.0).train().to(CARD)
    mixture = build_experts(ExpertsConfig(count=EXPERTS), WIDTH, HIDDEN).to(CARD)
    assert isinstance(mixture.experts, ExpertStack)
    x_ND = torch.randn(FRAMES, WIDTH, device=CARD, requires_grad=True)
    assert mixture.experts.is_grouped(x_ND.to(torch.bfloat16))
    for _ in range(2):
        # Once before, for what libraries set up at their first call.
        mixture(x_ND.to(torch.bfloat16), router(x_ND)).float().sum().backward()
        torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        mixture(x_ND.to(torch.bfloat16), router(x_ND)).float().sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("num_frames", [0, 1, 7])
def test_few_frames_and_none_pass_through_grouped_experts(num_frames):
    router = Router(WIDTH, EXPERTS, RouterConfig()).to(CARD)
    mixture = build_experts(ExpertsConfig(count=EXPERTS), WIDTH, HIDDEN).to(CARD)
    x_ND = torch.randn(num_frames, WIDTH, device=CARD, requires_grad=True)
    output_ND = mixture(x_ND.to(torch.bfloat16), router(x_ND))
    output_ND.float().sum().backward()
    assert output_ND.shape == x_ND.shape
    assert all(bool(parameter.grad.isfinite().all()) for parameter in mixture.parameters())


def whole_step(device: str) -> dict[str, Tensor]:
    """Gradients of a student's whole step: subsampling, attention, convolution, experts, decoder, transducer."""
    recognizer, loss = gradients.build()
    recognizer.to(device)
    for lane in range(gradients.LANES):
        batch = gradients.micro_batch(lane)
        on_device = FeatureBatch(
            batch.features_BTF.to(device),
            batch.lengths_B.to(device),
            batch.tokens_BU.to(device),
            batch.token_lengths_B.to(device),
        )
        terms, _ = loss(recognizer, on_device, gradients.totals(), 0.0)
        torch.stack(list(terms.values())).sum().backward()
    return {name: p.grad for name, p in recognizer.named_parameters() if p.grad is not None}


def test_a_whole_step_in_fp32():
    expected = whole_step("cpu")
    found = whole_step(CARD)
    norm = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        difference = (found[name].cpu() - gradient).norm()
        # Some gradients vanish by their mathematics and are only rounding.
        assert difference <= 1e-5 * (gradient.norm() + norm), name


@pytest.mark.parametrize("kind", ["log_mel", "kaldi"])
def test_features_of_waveforms(kind):
    features = LogMel(FeaturesConfig(kind=kind))
    waveforms_BS = 0.1 * torch.randn(2, 16000, generator=torch.Generator().manual_seed(1))
    lengths_B = torch.tensor([16000, 9000])
    expected, _ = features(waveforms_BS, lengths_B)
    found, _ = features.to(CARD)(waveforms_BS.to(CARD), lengths_B.to(CARD))
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-4)
