"""bf16 and int8: near to fp32, the same alone and among others, and half or a quarter of the weights."""

import pytest
import torch
from torch import nn

from launcher.errors import ConfigError
from launcher.inference.precision import Int8Experts, Int8Linear, int8_linear, quantise_rows, set_dtype
from model.decoder import DecoderConfig
from model.encoder import EncoderConfig
from model.layers.silu_linear import SiluLinear
from model.moe.experts import ExpertStack
from model.moe.router import ExpertsConfig
from model.recognizer import Recognizer, RecognizerConfig
from model.transducer import TransducerConfig

CONFIG = RecognizerConfig(
    encoder=EncoderConfig(
        layers=4, groups=2, width=32, heads=2, feedforward_width=64, kernel_size=3, experts=ExpertsConfig(count=3)
    ),
    decoder=DecoderConfig(layers=1, heads=2, feedforward_width=32, right_to_left_layers=1),
    transducer=TransducerConfig(width=16),
)


class Model:
    """As much of a finished model as `set_dtype` touches."""

    def __init__(self, config: RecognizerConfig = CONFIG, device: str = "cpu"):
        torch.manual_seed(0)
        self.recognizer = Recognizer(config, 80, 30).eval()
        self.device = torch.device(device)
        self.autocast_dtype = None

    @torch.inference_mode()
    def logits(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", self.autocast_dtype, enabled=self.autocast_dtype is not None):
            return self.recognizer(features, lengths).ctc_BSV.float()

    def num_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.recognizer.state_dict().values())


def test_rows_are_rounded_to_a_step_of_their_own_scale():
    torch.manual_seed(0)
    x = torch.randn(5, 40) * torch.tensor([1e-3, 1.0, 1e3, 0.0, 1e6])[:, None]
    rounded, scale = quantise_rows(x)
    assert rounded.dtype == torch.int8
    assert ((rounded * scale - x).abs() <= scale / 2 * 1.001).all()
    assert (rounded[3] == 0).all()


@pytest.mark.parametrize("num_rows", [1, 3, 17, 250])
@pytest.mark.parametrize("layer", [nn.Linear(40, 24), nn.Linear(40, 24, bias=False), SiluLinear(40, 24)])
def test_a_linear_layer_in_int8_is_near_to_its_own_and_knows_no_neighbours(layer, num_rows):
    torch.manual_seed(0)
    x = torch.randn(num_rows, 2, 40)
    small = Int8Linear(layer)
    with torch.inference_mode():
        expected = layer(x)
        seen = small(x)
        assert seen.shape == expected.shape
        assert (seen - expected).abs().max() < 0.03
        # To the bit: neither the number nor the values of other rows matter.
        assert torch.equal(small(x[:1]), seen[:1])
    assert small.weight_FD.element_size() == 1


def test_products_of_bytes_are_exact():
    torch.manual_seed(0)
    x = torch.randint(-127, 128, (9, 70)).float()
    x[:, 0] = 127
    weight = torch.randint(-127, 128, (11, 70)).to(torch.int8)
    product = int8_linear(x, weight, torch.ones(11), torch.zeros(11))
    assert torch.equal(product, x @ weight.float().t())


@pytest.mark.parametrize("counts", [[3, 0, 5], [0, 0, 8], [8, 0, 0], [0, 0, 0]])
def test_experts_in_int8_are_near_to_the_stack(counts):
    torch.manual_seed(0)
    stack = ExpertStack(3, 16, 24)
    with torch.no_grad():
        stack.w3.normal_()
    x, counts_E = torch.randn(sum(counts), 16), torch.tensor(counts)
    with torch.inference_mode():
        expected = stack(x, counts_E)
        seen = Int8Experts(stack)(x, counts_E)
    assert seen.shape == expected.shape
    if sum(counts):
        assert (seen - expected).abs().max() < 0.05


@pytest.mark.parametrize(("dtype", "share", "tolerance"), [("bf16", 0.75, 0.05), ("int8", 0.6, 0.08)])
@pytest.mark.parametrize("positions", ["rotary", "relative"])
def test_a_whole_recogniser_computes_nearly_the_same_and_takes_less_memory(dtype, share, tolerance, positions):
    encoder = CONFIG.encoder.model_copy(update={"positions": positions})
    config = CONFIG.model_copy(update={"encoder": encoder})
    features = torch.randn(3, 120, 80)
    lengths = torch.tensor([120, 50, 97])
    full = Model(config)
    small = Model(config)
    set_dtype(small, dtype)
    expected = full.logits(features, lengths)
    seen = small.logits(features, lengths)
    valid = slice(0, 12)
    difference = (seen[:, valid] - expected[:, valid]).abs().mean() / expected[:, valid].abs().mean()
    assert difference < tolerance
    assert small.num_bytes() < share * full.num_bytes()
    if dtype == "int8":
        # An utterance alone gives what it gives among others.
        alone = small.logits(features[1:2, :50], lengths[1:2])
        assert torch.allclose(alone, seen[1:2, : alone.shape[1]], atol=0.05)


def test_fp32_changes_nothing():
    model = Model()
    names = [type(module) for module in model.recognizer.modules()]
    set_dtype(model, "fp32")
    assert names == [type(module) for module in model.recognizer.modules()]


def test_what_writes_logits_stays_fp32():
    model = Model()
    set_dtype(model, "int8")
    recognizer = model.recognizer
    assert isinstance(recognizer.ctc, nn.Linear)
    assert isinstance(recognizer.decoder.output, nn.Linear)
    assert isinstance(recognizer.reverse_decoder.output, nn.Linear)
    assert not any(isinstance(module, Int8Linear) for module in recognizer.transducer.modules())
    assert sum(isinstance(module, Int8Experts) for module in recognizer.modules()) == 2
    assert not any(isinstance(module, ExpertStack) for module in recognizer.modules())


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_other_numbers_are_for_processors(dtype):
    with pytest.raises(ConfigError, match=f"--dtype {dtype} is for processors"):
        set_dtype(Model(device="meta"), dtype)
