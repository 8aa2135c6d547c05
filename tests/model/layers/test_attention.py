"""Relative and rotary positions against transformers' Wav2Vec2-Conformer, with its weights."""

import math

import pytest
import torch
from test_encoder import MEL_BINS, build, encoder_config
from transformers import Wav2Vec2ConformerConfig
from transformers.models.wav2vec2_conformer import modeling_wav2vec2_conformer as reference

from model.layers.attention import RelativePositions, RelativeSelfAttention, RotaryPositions, SelfAttention, _shift

WIDTH, HEADS, FRAMES = 24, 3, 17


def configuration(kind: str) -> Wav2Vec2ConformerConfig:
    return Wav2Vec2ConformerConfig(
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        position_embeddings_type=kind,
        max_source_positions=64,
        attention_dropout=0.0,
        attn_implementation="eager",
    )


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """Frames, and [B, 1, 1, T] which of them are valid."""
    torch.manual_seed(1)
    valid = torch.arange(FRAMES) < torch.tensor([[FRAMES], [9]])
    return torch.randn(2, FRAMES, WIDTH), valid[:, None, None]


def copy_projections(attention: SelfAttention, wav2vec2) -> None:
    with torch.no_grad():
        for kind in ("weight", "bias"):
            three = [getattr(linear, kind) for linear in (wav2vec2.linear_q, wav2vec2.linear_k, wav2vec2.linear_v)]
            getattr(attention.query_key_value, kind).copy_(torch.cat(three))
            getattr(attention.output, kind).copy_(getattr(wav2vec2.linear_out, kind))


def additive(valid: torch.Tensor) -> torch.Tensor:
    return torch.zeros(valid.shape).masked_fill(~valid, -math.inf)


def test_relative_attention_is_that_of_wav2vec2_conformer_with_its_gradients():
    torch.manual_seed(0)
    config = configuration("relative")
    wav2vec2, attention = reference.Wav2Vec2ConformerSelfAttention(config), RelativeSelfAttention(WIDTH, HEADS)
    copy_projections(attention, wav2vec2)
    with torch.no_grad():
        attention.position.weight.copy_(wav2vec2.linear_pos.weight)
        for bias, pair in (
            (attention.content_bias, wav2vec2.pos_bias_u),
            (attention.position_bias, wav2vec2.pos_bias_v),
        ):
            bias.copy_(pair.normal_().flatten())
    x_BTD, valid = inputs()
    table = reference.Wav2Vec2ConformerRelPositionalEmbedding(config)(x_BTD)
    torch.testing.assert_close(RelativePositions(WIDTH)(FRAMES), table[0])
    expected, _ = wav2vec2(x_BTD, additive(valid), table)
    actual = attention(x_BTD, RelativePositions(WIDTH)(FRAMES), valid)
    torch.testing.assert_close(actual, expected)
    for output in (expected, actual):
        output.square().sum().backward()
    pairs = [
        (attention.position.weight, wav2vec2.linear_pos.weight),
        (attention.output.weight, wav2vec2.linear_out.weight),
    ]
    pairs += [(attention.content_bias, wav2vec2.pos_bias_u), (attention.position_bias, wav2vec2.pos_bias_v)]
    for one, other in pairs:
        torch.testing.assert_close(one.grad, other.grad.view_as(one), rtol=1e-4, atol=1e-4)


def test_rotary_attention_is_that_of_wav2vec2_conformer_where_both_turn_the_same_vectors():
    """Wav2Vec2's turns frames before the projections, ours queries and keys: the same when those are the identity."""
    torch.manual_seed(0)
    config = configuration("rotary")
    wav2vec2, attention = reference.Wav2Vec2ConformerSelfAttention(config), SelfAttention(WIDTH, HEADS)
    with torch.no_grad():
        for linear in (wav2vec2.linear_q, wav2vec2.linear_k):
            linear.weight.copy_(torch.eye(WIDTH))
            linear.bias.zero_()
    copy_projections(attention, wav2vec2)
    x_BTD, valid = inputs()
    expected, _ = wav2vec2(x_BTD, additive(valid), reference.Wav2Vec2ConformerRotaryPositionalEmbedding(config)(x_BTD))
    actual = attention(x_BTD, RotaryPositions(WIDTH // HEADS)(FRAMES), valid)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("frames", "keys"), [(5, 5), (3, 7), (1, 4)])
def test_shifted_scores_are_those_of_each_keys_offset(frames, keys):
    """Query t is frame keys - frames + t; the table's column p is of the offset keys - 1 - p."""
    offsets = torch.arange(keys - 1, -frames, -1.0).expand(1, 1, frames, -1).contiguous()
    query, key = torch.arange(keys - frames, keys), torch.arange(keys)
    assert torch.equal(_shift(offsets, keys)[0, 0], (query[:, None] - key).float())


def test_without_positions_the_order_of_frames_does_not_matter():
    torch.manual_seed(0)
    attention = SelfAttention(WIDTH, HEADS)
    x_BTD, _ = inputs()
    order = torch.randperm(FRAMES)
    torch.testing.assert_close(attention(x_BTD, None)[:, order], attention(x_BTD[:, order], None))
    positions = RotaryPositions(WIDTH // HEADS)(FRAMES)
    turned = attention(x_BTD[:, order], positions)
    assert not torch.allclose(attention(x_BTD, positions)[:, order], turned, atol=1e-3)


def test_a_group_shares_its_position_parameters():
    encoder = build(positions="relative")
    names = [name for name, _ in encoder.named_parameters() if "attention.position" in name or "content_bias" in name]
    assert len(names) == 3 * encoder.config.num_groups
    encoder(torch.randn(1, 40, MEL_BINS), torch.tensor([40])).frames_BSD.square().sum().backward()
    assert all(encoder.get_parameter(name).grad.norm() > 0 for name in names)


@pytest.mark.parametrize("positions", ["relative", "none"])
def test_padding_does_not_matter_whatever_the_positions(positions):
    encoder = build(positions=positions).eval()
    features, lengths = torch.randn(3, 60, MEL_BINS), torch.tensor([60, 31, 0])
    for row, length in enumerate(lengths.tolist()):
        features[row, length:] = 0.0
    together = encoder(features, lengths).frames_BSD
    alone = encoder(features[1:2, :31], lengths[1:2]).frames_BSD
    assert torch.isfinite(together).all()
    torch.testing.assert_close(together[1, :8], alone[0], rtol=1e-4, atol=1e-5)


def test_only_rotary_positions_need_heads_of_an_even_width():
    assert encoder_config(width=6, heads=2, positions="relative").width == 6
    with pytest.raises(ValueError, match="choose a multiple of 4"):
        encoder_config(width=6, heads=2)
    with pytest.raises(ValueError, match="choose a multiple of 4"):
        encoder_config(width=6, heads=4, positions="none")
    with pytest.raises(ValueError, match="width 9 is odd"):
        encoder_config(width=9, heads=3, positions="relative")
