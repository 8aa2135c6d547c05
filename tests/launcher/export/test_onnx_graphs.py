"""ONNX graphs give what torch gives on real speech of any length and batch, with experts inside, and in int8 too."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from phrases import phrase_utterances
from small_models import KINDS, real_speech, write_small_model

from data.shards.writer import write_split
from launcher.export import onnx_graphs
from launcher.export.model_files import open_model_files
from launcher.export.network import build_network
from launcher.export.onnx_evaluation import evaluate_graphs, show_results
from launcher.inference.finished_model import FinishedModel
from model.recognizer import START

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

# The exporter takes seconds, and minutes where the cores are shared.
pytestmark = pytest.mark.timeout(900)
# Every graph of a model takes the exporter several seconds.
many_graphs = pytest.mark.slow
KIND = "streaming"
ATOL = 1e-4


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model, and its graphs and their int8 forms."""
    root = tmp_path_factory.mktemp("onnx")
    folder = write_small_model(root / "model", KIND)
    graphs = root / "graphs"
    graphs.mkdir()
    names = onnx_graphs.write_graphs(graphs, open_model_files(folder), int8=True)
    assert names[::2] == ["encoder.onnx", "ctc.onnx", "decoder.onnx", "step.onnx"]
    return folder, graphs


def inputs_of(model: FinishedModel, waveforms: list[np.ndarray]) -> dict[str, np.ndarray]:
    samples_B = torch.tensor([len(waveform) for waveform in waveforms])
    rows = [torch.from_numpy(waveform) for waveform in waveforms]
    features_BTF, lengths_B = model.features(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), samples_B)
    return {"features": features_BTF.numpy(), "lengths": lengths_B.numpy()}


def check_batches(model: FinishedModel, folder) -> None:
    """Encoder and CTC output on one recording, on parts of it, and on several together."""
    encoder = onnx_graphs.open_session(folder / "encoder.onnx")
    ctc = onnx_graphs.open_session(folder / "ctc.onnx")
    speech = real_speech(4)
    for waveforms in ([speech[0]], [speech[1][:1500]], [speech[2][:9000]], speech[:2], speech):
        inputs = inputs_of(model, waveforms)
        frames_BSD, lengths_B = encoder.run(None, inputs)
        (logits_BSV,) = ctc.run(None, {"frames": frames_BSD})
        expected = model.encode(waveforms)
        assert lengths_B.tolist() == expected.encoder.lengths_B.tolist()
        np.testing.assert_allclose(logits_BSV, expected.ctc_BSV.numpy(), atol=ATOL, rtol=0)


def test_an_encoder_with_experts_gives_the_frames_of_torch_on_any_batch_and_length(tmp_path):
    """One of a layer's experts may get no frame, as of a recording that is shorter than a window."""
    folder = write_small_model(tmp_path / "model", "one layer")
    model = FinishedModel.load(folder)
    graph = next(onnx_graphs.make_graphs(open_model_files(folder)))
    path = tmp_path / "encoder.onnx"
    onnx_graphs.write_graph(path, graph, {"sample_rate": "16000"})
    onnx_graphs.check_graph(path, graph)
    int8 = onnx_graphs.quantise(path)
    speech = real_speech(3)
    for waveforms in ([speech[0]], [speech[1][:1500]], [speech[2][:420], speech[2][:1800]], speech):
        inputs = inputs_of(model, waveforms)
        expected_BSD = model.encode(waveforms).encoder.frames_BSD.numpy()
        frames_BSD, _ = onnx_graphs.open_session(path).run(None, inputs)
        np.testing.assert_allclose(frames_BSD, expected_BSD, atol=ATOL, rtol=0)
        frames_BSD, _ = onnx_graphs.open_session(int8).run(None, inputs)
        # Frames are normed: their deviation is 1.
        assert np.abs(frames_BSD - expected_BSD).mean() < 0.15
    assert str(Path(onnx_graphs.__file__).parent).encode() not in path.read_bytes()


@many_graphs
def test_encoder_and_ctc_give_the_logits_of_torch(exported):
    check_batches(FinishedModel.load(exported[0]), exported[1])


@many_graphs
@torch.inference_mode()
def test_the_decoder_gives_the_logits_of_torch_for_any_number_of_tokens(exported):
    model = FinishedModel.load(exported[0])
    waveforms = real_speech(2)
    encoder = onnx_graphs.open_session(exported[1] / "encoder.onnx")
    decoder = onnx_graphs.open_session(exported[1] / "decoder.onnx")
    frames_BSD, lengths_B = encoder.run(None, inputs_of(model, waveforms))
    for num_tokens in (1, 2, 9):
        tokens_BU = torch.randint(4, model.tokenizer.vocabulary_size, (2, num_tokens))
        tokens_BU[:, 0] = START
        inputs = {"frames": frames_BSD, "frame_lengths": lengths_B, "tokens": tokens_BU.numpy()}
        features = {name: torch.from_numpy(array) for name, array in inputs_of(model, waveforms).items()}
        expected = model.recognizer(features["features"], features["lengths"], tokens_BU[:, 1:])
        (logits_BUV,) = decoder.run(None, inputs)
        np.testing.assert_allclose(logits_BUV, expected.decoder_BUV.numpy(), atol=ATOL, rtol=0)


@many_graphs
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("chunk_frames", [2, 5])
def test_steps_give_the_frames_of_torch_for_any_chunk_and_context(exported, batch, chunk_frames):
    model = FinishedModel.load(exported[0])
    network = build_network(open_model_files(exported[0]))
    session = onnx_graphs.open_session(exported[1] / "step.onnx")
    description = json.loads((exported[1] / "graphs.json").read_text())
    factor = description["subsampling_factor"]
    features_BTF = torch.from_numpy(inputs_of(model, real_speech(3))["features"])[:batch]
    context = 2 * chunk_frames
    layers, width = description["layers"], description["width"]
    caches = (layers, batch, description["heads"], context, description["head_width"])
    state = {
        "cached": np.zeros(batch, np.int64),
        "keys": np.zeros(caches, np.float32),
        "values": np.zeros(caches, np.float32),
        "inputs": np.zeros((layers, batch, description["convolution_inputs"], width), np.float32),
    }
    expected_state = {name: torch.from_numpy(array) for name, array in state.items()}
    edge_BTF = torch.zeros(batch, factor, features_BTF.shape[2])
    skipped_B = torch.full((batch,), factor)
    for number in range(4):
        start = number * chunk_frames * factor
        chunk_BTF = torch.cat((edge_BTF, features_BTF[:, start : start + chunk_frames * factor]), dim=1)
        output = session.run(None, {"features": chunk_BTF.numpy(), "skipped": skipped_B.numpy(), **state})
        expected = network.encoder.step(chunk_BTF, skipped_B, *expected_state.values())
        for array, tensor in zip(output, expected, strict=True):
            np.testing.assert_allclose(array, tensor.numpy(), atol=ATOL, rtol=0)
        state = dict(zip(state, output[1:], strict=True))
        expected_state = dict(zip(expected_state, expected[1:], strict=True))
        edge_BTF = chunk_BTF[:, -factor:]
        skipped_B = torch.zeros(batch, dtype=torch.int64)


@many_graphs
def test_weights_of_shared_blocks_and_experts_are_in_a_graph_once(exported):
    """Two layers use one block: of each of its matrices there is one."""
    config = KINDS[KIND][0]["encoder"]
    sizes = sorted((config["feedforward_width"], config["width"]))
    for name in ("encoder.onnx", "encoder.int8.onnx"):
        graph = onnx.load(exported[1] / name).graph
        matrices = [tensor for tensor in graph.initializer if sorted(tensor.dims) == sizes]
        # The first feed-forward layer, and two experts in place of the second.
        assert len(matrices) == 2 * 3, name
        if "int8" in name:
            assert all(tensor.data_type == onnx.TensorProto.INT8 for tensor in matrices)


@many_graphs
def test_no_path_of_this_machine_is_in_a_graph(exported):
    for path in exported[1].glob("*.onnx"):
        content = path.read_bytes()
        for secret in (str(Path(onnx_graphs.__file__).parent), str(Path.home()), "network_chorus.py", "site-packages"):
            assert secret.encode() not in content, path.name


@many_graphs
def test_int8_weights_are_smaller_and_their_error_rate_and_speed_are_told(exported, tmp_path):
    _, graphs = exported
    shards = tmp_path / "shards"
    write_split(phrase_utterances(6), shards, sample_rate_hz=16000, shard_seconds=60, seed=1, workers=1)
    rows = evaluate_graphs(graphs, open_model_files(exported[0]), shards)
    assert [row["form"] for row in rows] == ["torch", "onnx", "onnx int8"]
    assert rows[0]["cer"] == rows[1]["cer"] > 0
    assert all(row["rtf"] > 0 and row["utterances"] == 6 for row in rows)
    assert json.loads((graphs / "results.json").read_text()) == rows
    assert len(show_results(rows)) == 4
    types = {}
    for name in ("encoder.onnx", "encoder.int8.onnx"):
        initializers = onnx.load(graphs / name).graph.initializer
        types[name] = sum(initializer.data_type == onnx.TensorProto.INT8 for initializer in initializers)
    assert types["encoder.onnx"] == 0
    assert types["encoder.int8.onnx"] > 8


@many_graphs
def test_a_graph_that_differs_from_torch_is_refused(exported):
    model = open_model_files(exported[0])
    graph = next(graph for graph in onnx_graphs.make_graphs(model) if graph.name == "ctc")
    onnx_graphs.check_graph(exported[1] / "ctc.onnx", graph)
    with torch.no_grad():
        graph.module.bias[3] += 0.01
    with pytest.raises(onnx_graphs.ConfigError, match="differs from torch"):
        onnx_graphs.check_graph(exported[1] / "ctc.onnx", graph)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_difference_that_is_no_number_counts_as_one(value):
    assert not onnx_graphs.largest_difference([np.array([value])], [np.array([1.0])]) <= onnx_graphs.TOLERANCE


@many_graphs
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != KIND])
def test_graphs_of_every_kind_give_the_logits_of_torch(tmp_path, kind):
    folder = write_small_model(tmp_path / "model", kind)
    graphs = tmp_path / "graphs"
    graphs.mkdir()
    onnx_graphs.write_graphs(graphs, open_model_files(folder), int8=False)
    check_batches(FinishedModel.load(folder), graphs)
