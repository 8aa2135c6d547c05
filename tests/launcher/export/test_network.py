"""The network that exports carry gives what the model gives, in every kind of model, on real speech."""

import pytest
import torch
from small_models import KINDS, real_speech, write_small_model

from launcher.export.model_files import open_model_files
from launcher.export.network import build_network
from launcher.inference.finished_model import FinishedModel
from model.layers.chunk_mask import ChunkMask
from model.recognizer import BLANK, START
from model.streaming import StreamingEncoder

STREAMING = [kind for kind, (values, _) in KINDS.items() if values["encoder"].get("causal_convolution")]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """By kind, the finished model and its network."""
    root = tmp_path_factory.mktemp("models")
    built = {}
    for number, kind in enumerate(KINDS):
        folder = write_small_model(root / str(number), kind)
        built[kind] = (FinishedModel.load(folder), build_network(open_model_files(folder)))
    return built


def features_of(model: FinishedModel, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    waveforms = [torch.from_numpy(waveform) for waveform in real_speech(count)]
    samples_B = torch.tensor([len(waveform) for waveform in waveforms])
    return model.features(torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True), samples_B)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 3])
@torch.inference_mode()
def test_logits_are_those_of_the_model(models, kind, count):
    model, network = models[kind]
    features_BTF, lengths_B = features_of(model, count)
    expected = model.recognizer(features_BTF, lengths_B)
    logits_BSV, logit_lengths_B = network(features_BTF, lengths_B)
    assert logit_lengths_B.equal(expected.encoder.lengths_B)
    # fp32 sums in another order.
    torch.testing.assert_close(logits_BSV, expected.ctc_BSV, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_experts_with_tensors_of_their_own_are_the_same(models, tmp_path, kind):
    model, network = models[kind]
    folder = write_small_model(tmp_path / "model", kind)
    separate = build_network(open_model_files(folder), separate_experts=True)
    inputs = features_of(model, 2)
    torch.testing.assert_close(separate(*inputs)[0], network(*inputs)[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["full", "streaming", "transducer"])
@torch.inference_mode()
def test_the_decoders_logits_are_those_of_the_model(models, kind):
    model, network = models[kind]
    features_BTF, lengths_B = features_of(model, 3)
    tokens_BU = torch.randint(4, model.tokenizer.vocabulary_size, (3, 7))
    token_lengths_B = torch.tensor([7, 7, 7])
    recognizer = model.recognizer
    recognizer.transducer, transducer = None, recognizer.transducer
    try:
        expected = recognizer(features_BTF, lengths_B, tokens_BU, token_lengths_B)
    finally:
        recognizer.transducer = transducer
    frames_BSD, frame_lengths_B = network.encoder(features_BTF, lengths_B)
    start_BU = torch.nn.functional.pad(tokens_BU, (1, 0), value=START)
    logits_BUV = network.decoder(frames_BSD, frame_lengths_B, start_BU)
    torch.testing.assert_close(logits_BUV, expected.decoder_BUV, atol=1e-5, rtol=0)
    if expected.reverse_BUV is not None:
        backwards_BU = torch.nn.functional.pad(tokens_BU.flip(1), (1, 0), value=START)
        logits_BUV = network.reverse_decoder(frames_BSD, frame_lengths_B, backwards_BU)
        torch.testing.assert_close(logits_BUV, expected.reverse_BUV, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_the_transducers_logits_are_those_of_the_model(models):
    model, network = models["transducer"]
    features_BTF, lengths_B = features_of(model, 1)
    transducer = model.recognizer.transducer
    tokens_BU = torch.tensor([[BLANK, BLANK, 5, 6, 7]])
    frames_BSD, _ = network.encoder(features_BTF, lengths_B)
    joint = transducer.frames(frames_BSD)[:, :, None] + transducer.prediction(tokens_BU)[:, None]
    torch.testing.assert_close(
        network.transducer(frames_BSD, tokens_BU), transducer.joint.logits(joint), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("kind", STREAMING)
@pytest.mark.parametrize("left_chunks", [0, 2, None])
@torch.inference_mode()
def test_frames_in_chunks_are_those_of_the_model_in_chunks(models, kind, left_chunks):
    model, network = models[kind]
    features_BTF, lengths_B = features_of(model, 3)
    expected = model.recognizer.encoder(features_BTF, lengths_B, ChunkMask(4, left_chunks))
    frames_BSD, _ = network.encoder(features_BTF, lengths_B, 4, left_chunks)
    torch.testing.assert_close(frames_BSD, expected.frames_BSD, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", STREAMING)
@pytest.mark.parametrize("left_chunks", [1, 3])
@torch.inference_mode()
def test_steps_give_the_frames_of_the_streaming_encoder(models, kind, left_chunks):
    """Two streams side by side, the second of which begins two chunks after the first."""
    model, network = models[kind]
    encoder = model.recognizer.encoder
    factor = encoder.subsampling.factor
    chunk = ChunkMask(3, left_chunks)
    size = chunk.frames * factor
    features_BTF, _ = features_of(model, 1)
    features_TF = features_BTF[0]
    stream = StreamingEncoder(encoder, chunk)
    expected_SD = torch.cat((stream.push(features_TF), stream.finish()))

    config = encoder.config
    shape = (config.layers, 2, config.heads, chunk.left_frames, config.width // config.heads)
    keys = torch.zeros(shape)
    values = torch.zeros(shape)
    inputs = torch.zeros(config.layers, 2, config.kernel_size - 1, config.width)
    cached_B = torch.zeros(2, dtype=torch.int64)
    first = []
    second = []
    num_chunks = len(features_TF) // size
    assert num_chunks > 4
    before = torch.zeros(factor, features_TF.shape[1])
    for number in range(num_chunks):
        late = number - 2
        pieces = []
        for position in (number, late):
            start = max(position, 0) * size
            edge = before if position <= 0 else features_TF[start - factor : start]
            pieces.append(torch.cat((edge, features_TF[start : start + size])))
        if late == 0:
            # The second stream begins: its state is that of none.
            for state in (keys, values, inputs):
                state[:, 1] = 0
            cached_B[1] = 0
        skipped_B = torch.tensor([factor if position <= 0 else 0 for position in (number, late)])
        frames_BSD, cached_B, keys, values, inputs = network.encoder.step(
            torch.stack(pieces), skipped_B, cached_B, keys, values, inputs
        )
        first.append(frames_BSD[0])
        if late >= 0:
            second.append(frames_BSD[1])
    for frames in (torch.cat(first), torch.cat(second)):
        torch.testing.assert_close(frames, expected_SD[: len(frames)], atol=1e-5, rtol=0)
