"""Attention in chunks, and an utterance in pieces that is encoded as the whole."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_encoder import MEL_BINS, build, encoder_config

from model.layers.batch_norm import FrameBatchNorm
from model.layers.chunk_mask import ChunkMask, ChunksConfig
from model.layers.subsampling import SubsamplingConfig
from model.streaming import StreamingEncoder

EXPERTS = {"count": 3, "router": {"per_frame": 2}}


def streaming_encoder(**changes):
    encoder = build(causal_convolution=True, **changes).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        for norm in encoder.modules():
            if isinstance(norm, FrameBatchNorm):
                norm.running_mean.normal_(generator=generator)
                norm.running_var.uniform_(0.5, 2.0, generator=generator)
    return encoder


def in_pieces(encoder, features_TF, cuts, chunk) -> list[torch.Tensor]:
    """What comes out at each piece, and at the end."""
    stream = StreamingEncoder(encoder, chunk)
    outputs = [stream.push(piece) for piece in features_TF.tensor_split(sorted(cuts))]
    return [*outputs, stream.finish()]


@torch.no_grad()
def whole(encoder, features_TF, chunk=None) -> torch.Tensor:
    return encoder(features_TF[None], torch.tensor([len(features_TF)]), chunk).frames_BSD[0]


@settings(deadline=None, max_examples=80)
@given(
    positions=st.sampled_from(["rotary", "relative", "none"]),
    norm=st.sampled_from(["layer", "batch"]),
    experts=st.booleans(),
    factor=st.sampled_from([4, 6, 8]),
    num_features=st.integers(1, 90),
    cuts=st.lists(st.integers(0, 90), max_size=6),
    chunk=st.builds(ChunkMask, st.integers(1, 5), st.none() | st.integers(0, 3)),
    seed=st.integers(0, 100),
)
def test_any_pieces_of_an_utterance_give_the_frames_of_the_whole(
    positions, norm, experts, factor, num_features, cuts, chunk, seed
):
    """concat(push(piece) for pieces of x) + finish() == encoder(x, chunk)"""
    encoder = streaming_encoder(
        positions=positions,
        convolution_norm=norm,
        experts=EXPERTS if experts else None,
        subsampling=SubsamplingConfig(channels=4, factor=factor),
    )
    features = torch.randn(num_features, MEL_BINS, generator=torch.Generator().manual_seed(seed))
    actual = torch.cat(in_pieces(encoder, features, cuts, chunk))
    torch.testing.assert_close(actual, whole(encoder, features, chunk), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("factor", [4, 6, 8])
def test_a_chunk_comes_out_with_its_own_last_feature(factor):
    encoder = streaming_encoder(subsampling=SubsamplingConfig(channels=4, factor=factor))
    stream = StreamingEncoder(encoder, ChunkMask(3, 1))
    pieces = torch.randn(2 * 3 * factor, MEL_BINS).split(1)
    counts = [len(stream.push(piece)) for piece in pieces]
    assert counts == ([0] * (3 * factor - 1) + [3]) * 2


def test_memory_is_bounded_by_the_left_context():
    encoder = streaming_encoder()

    def cached_bytes(num_features: int, chunk: ChunkMask) -> int:
        """Bytes that a stream holds on to after some features, storages whole."""
        stream = StreamingEncoder(encoder, chunk)
        for piece in torch.randn(num_features, MEL_BINS).split(7):
            stream.push(piece)
        tensors = [stream._waiting, stream._edge]
        tensors += [tensor for cache in stream._caches for tensor in (cache._key, cache._value, cache._inputs)]
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    assert cached_bytes(1600, ChunkMask(4, 2)) == cached_bytes(160, ChunkMask(4, 2))
    assert cached_bytes(1600, ChunkMask(4)) > 5 * cached_bytes(160, ChunkMask(4))


@pytest.mark.parametrize("positions", ["rotary", "relative", "none"])
def test_a_frame_sees_its_chunk_and_the_left_ones_and_no_others(positions):
    """In one layer, with one chunk of left context, a change in chunk 2 of 0..5 reaches chunks 2 and 3 by attention,
    and by the convolution's two frames before a frame the first half of chunk 4."""
    encoder = streaming_encoder(layers=1, groups=1, kernel_size=3, positions=positions)
    features = torch.randn(6 * 16, MEL_BINS)
    changed = features.clone()
    changed[2 * 16 + 5 : 2 * 16 + 8] += 1.0
    chunk = ChunkMask(4, 1)
    difference = (whole(encoder, features, chunk) - whole(encoder, changed, chunk)).abs().amax(-1)
    assert (difference > 1e-5).nonzero().flatten().tolist() == list(range(8, 18))


def test_padding_does_not_matter_in_chunks():
    encoder = streaming_encoder()
    features, lengths = torch.randn(3, 90, MEL_BINS), torch.tensor([90, 31, 0])
    for row, length in enumerate(lengths.tolist()):
        features[row, length:] = 0.0
    chunk = ChunkMask(2, 1)
    together = encoder(features, lengths, chunk).frames_BSD
    assert torch.isfinite(together).all()
    torch.testing.assert_close(together[1, :8], whole(encoder, features[1, :31], chunk), rtol=1e-4, atol=1e-5)


def test_training_draws_chunks_as_configured_and_evaluation_none():
    encoder = build(causal_convolution=True, chunks=ChunksConfig(max_frames=3, full_context=0.4), dropout=0.0)
    features, lengths = torch.randn(1, 80, MEL_BINS), torch.tensor([80])
    possible = [encoder(features, lengths, chunk).frames_BSD for chunk in map(ChunkMask, (1, 2, 3))]
    possible.append(encoder.eval()(features, lengths).frames_BSD)
    encoder.train()
    torch.manual_seed(0)
    seen = [0] * 4
    for _ in range(300):
        actual = encoder(features, lengths).frames_BSD
        seen[[torch.equal(actual, frames) for frames in possible].index(True)] += 1
    assert seen[3] / 300 == pytest.approx(0.4, abs=0.09)
    assert all(count / 300 == pytest.approx(0.2, abs=0.07) for count in seen[:3])


def test_the_left_context_is_drawn_where_the_configuration_says():
    torch.manual_seed(0)
    full = ChunksConfig(max_frames=4, full_context=0.0)
    drawn = full.model_copy(update={"left": "drawn"})
    assert {full.draw(20).left_chunks for _ in range(50)} == {None}
    chunks = [drawn.draw(8) for _ in range(400)]
    assert {(chunk.frames, chunk.left_chunks) for chunk in chunks} == {
        (frames, left) for frames in range(1, 5) for left in range(-(-8 // frames))
    }


def test_a_lane_draws_the_same_chunk_wherever_it_runs():
    encoder = build(causal_convolution=True, chunks=ChunksConfig(max_frames=6, full_context=0.3, left="drawn"))
    features, lengths = torch.randn(1, 80, MEL_BINS), torch.tensor([80])
    outputs = []
    for before in (0, 3):
        torch.rand(before)
        torch.manual_seed(11)
        outputs.append([encoder(features, lengths).frames_BSD for _ in range(4)])
    assert all(torch.equal(one, other) for one, other in zip(*outputs, strict=True))
    assert not all(torch.equal(outputs[0][0], other) for other in outputs[0][1:])


def test_what_would_look_beyond_a_chunk_is_refused():
    with pytest.raises(ValueError, match="causal_convolution is false"):
        encoder_config(chunks=ChunksConfig())
    with pytest.raises(ValueError, match="causal_convolution: true"):
        build()(torch.randn(1, 20, MEL_BINS), torch.tensor([20]), ChunkMask(2))
    with pytest.raises(ValueError, match="causal_convolution: false"):
        StreamingEncoder(build().eval(), ChunkMask(2))
    with pytest.raises(ValueError, match="training mode"):
        StreamingEncoder(build(causal_convolution=True), ChunkMask(2))
    with pytest.raises(ValueError, match="0 frames"):
        ChunkMask(0)
    with pytest.raises(ValueError, match="left_chunks is -1"):
        ChunkMask(2, -1)


def test_a_stream_ends_once():
    stream = StreamingEncoder(streaming_encoder(), ChunkMask(2))
    with pytest.raises(ValueError, match="push its features first"):
        stream.finish()
    stream.push(torch.randn(9, MEL_BINS))
    assert len(stream.finish()) == 1
    with pytest.raises(ValueError, match="was finished"):
        stream.push(torch.randn(9, MEL_BINS))
