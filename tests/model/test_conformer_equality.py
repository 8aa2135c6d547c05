"""The dense encoder without positions is torchaudio's Conformer, weight for weight."""

import pytest
import torch
import torchaudio
from test_encoder import encoder_config
from torch import nn

from model.encoder import Encoder

WIDTH, LAYERS = 16, 3


class Given(nn.Module):
    """In place of the subsampling: the frames as they are."""

    def forward(self, frames_BSD, lengths_B):
        return frames_BSD, lengths_B


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of [B, D, T], which torchaudio's convolution module does not offer itself."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x_BDT):
        return self.norm(x_BDT.transpose(1, 2)).transpose(1, 2)


def build(convolution_norm: str) -> tuple[Encoder, torchaudio.models.Conformer]:
    """Both with weights that differ in every layer, and running statistics that are not the first ones."""
    torch.manual_seed(0)
    config = encoder_config(
        layers=LAYERS, groups=LAYERS, width=WIDTH, positions="none", convolution_norm=convolution_norm
    )
    encoder = Encoder(config, mel_bins=20)
    encoder.subsampling = Given()
    reference = torchaudio.models.Conformer(WIDTH, config.heads, config.feedforward_width, LAYERS, config.kernel_size)
    for layer in reference.conformer_layers:
        if convolution_norm == "layer":
            layer.conv_module.sequential[3] = ChannelNorm()
    for name, tensor in reference.state_dict().items():
        if tensor.ndim == 1:
            tensor.copy_(torch.rand(tensor.shape) + 0.5 if "var" in name else tensor + 0.3 * torch.randn(tensor.shape))
    for index, layer in enumerate(reference.conformer_layers):
        copy_layer(encoder, index, layer)
    return encoder, reference


def pairs(encoder: Encoder, index: int, reference) -> list[tuple[nn.Module, nn.Module]]:
    """Our modules of a layer beside torchaudio's."""
    block, layer, convolution = encoder.blocks[index], encoder.layers[index], reference.conv_module
    gated, _, depthwise, norm, _, output, _ = convolution.sequential
    return [
        (layer.feedforward1_norm, reference.ffn1.sequential[0]),
        (block.feedforward1.expand, reference.ffn1.sequential[1]),
        (block.feedforward1.contract, reference.ffn1.sequential[4]),
        (layer.attention_norm, reference.self_attn_layer_norm),
        (block.attention.output, reference.self_attn.out_proj),
        (layer.convolution_norm, convolution.layer_norm),
        (block.convolution.gated, gated),
        (block.convolution.depthwise, depthwise),
        (layer.convolution_inner_norm, norm.norm if isinstance(norm, ChannelNorm) else norm),
        (block.convolution.output, output),
        (layer.feedforward2_norm, reference.ffn2.sequential[0]),
        (block.feedforward2.expand, reference.ffn2.sequential[1]),
        (block.feedforward2.contract, reference.ffn2.sequential[4]),
        (layer.final_norm, reference.final_layer_norm),
    ]


@torch.no_grad()
def copy_layer(encoder: Encoder, index: int, reference) -> None:
    """Before BatchNorm our depthwise convolution has no bias: torchaudio's only moves the mean that is taken off."""
    for one, other in pairs(encoder, index, reference):
        given = other.state_dict()
        for name, tensor in one.state_dict().items():
            tensor.copy_(given[name].view_as(tensor))
    if "running_mean" in encoder.layers[index].convolution_inner_norm.state_dict():
        encoder.layers[index].convolution_inner_norm.running_mean -= reference.conv_module.sequential[2].bias
    packed = encoder.blocks[index].attention.query_key_value
    packed.weight.copy_(reference.self_attn.in_proj_weight)
    packed.bias.copy_(reference.self_attn.in_proj_bias)


@pytest.mark.parametrize("convolution_norm", ["batch", "layer"])
def test_each_utterance_of_a_padded_batch_is_encoded_as_by_torchaudio_alone(convolution_norm):
    """Alone, because torchaudio's convolutions let the padding of a batch into the frames beside it."""
    encoder, reference = build(convolution_norm)
    frames, lengths = torch.randn(3, 30, WIDTH), torch.tensor([30, 18, 1])
    actual = encoder.eval()(frames, lengths)
    assert torch.equal(actual.lengths_B, lengths)
    for row, length in enumerate(lengths.tolist()):
        expected, _ = reference.eval()(frames[row : row + 1, :length], lengths[row : row + 1])
        torch.testing.assert_close(actual.frames_BSD[row, :length], expected[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("convolution_norm", ["batch", "layer"])
def test_training_gives_the_same_output_gradients_and_running_statistics(convolution_norm):
    encoder, reference = build(convolution_norm)
    frames, lengths = torch.randn(3, 30, WIDTH), torch.tensor([30, 30, 30])
    weight = torch.randn(3, 30, WIDTH)
    actual, (expected, _) = encoder.train()(frames, lengths), reference.train()(frames, lengths)
    torch.testing.assert_close(actual.frames_BSD, expected, rtol=1e-4, atol=1e-5)
    for output in (actual.frames_BSD, expected):
        (output * weight).sum().backward()
    encoder.update_norms(actual.moments)
    assert len(actual.moments) == (LAYERS if convolution_norm == "batch" else 0)
    for index, layer in enumerate(reference.conformer_layers):
        packed = encoder.blocks[index].attention.query_key_value
        torch.testing.assert_close(packed.weight.grad, layer.self_attn.in_proj_weight.grad, rtol=1e-3, atol=1e-4)
        for one, other in pairs(encoder, index, layer):
            for name, parameter in one.named_parameters():
                gradient = other.get_parameter(name).grad.view_as(parameter)
                torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-4)
            for name, buffer in one.named_buffers():
                expected = other.get_buffer(name)
                if name == "running_mean":
                    expected = expected - layer.conv_module.sequential[2].bias
                torch.testing.assert_close(buffer, expected, rtol=1e-4, atol=1e-5)
