"""A recogniser as ONNX graphs, checked with onnxruntime, and their int8 forms.

encoder.onnx    features [B, T, F], lengths [B] -> frames [B, S, D], frame_lengths [B]
ctc.onnx        frames [B, S, D] -> logits [B, S, V]
decoder.onnx    frames, frame_lengths, tokens [B, U] -> logits [B, U, V] of the token after each
step.onnx       the next chunk of audio that still arrives, with the state before and after it (causal models)

Every batch, length, chunk and context is allowed. Experts are in the graph: each multiplies the frames that chose it
and no others, by a gather before it and a scatter after it.
"""

import json
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from launcher.errors import ConfigError
from launcher.export.model_files import ModelFiles
from launcher.export.network import Network, build_network

# The least that has what the exporter writes for these models; every runtime of the last years reads it.
OPSET = 18
# What ends a piece or a line for any reader of tokens.txt.
SPACES = re.compile(r"\s")
# The largest difference to torch, over the largest output where that is above 1.
TOLERANCE = 1e-4
INT8_SUFFIX = ".int8.onnx"
# Frames of the example that the exporter follows; the graph is for any number.
EXAMPLE_CHUNK = 4
EXAMPLE_CONTEXT = 6

Arrays = Mapping[str, np.ndarray]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Graph:
    """A module to be written as a graph: examples of its inputs, by name and in their order, and what else varies.

    dynamic: by input, the axes that may have any size and their names. outputs: their names.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    dynamic: dict[str, dict[int, Any]]
    outputs: tuple[str, ...]

    def output_of(self, arrays: Arrays) -> list[np.ndarray]:
        """What torch gives for these inputs."""
        tensors = [torch.from_numpy(arrays[name]) for name in self.inputs]
        with torch.inference_mode():
            output = self.module(*tensors)
        if isinstance(output, Tensor):
            output = (output,)
        return [tensor.numpy() for tensor in output]


class _Step(nn.Module):
    """The encoder's step for streams, with a method of its own for the exporter to follow."""

    def __init__(self, network: Network):
        super().__init__()
        self.encoder = network.encoder

    def forward(self, features, skipped, cached, keys, values, inputs):
        return self.encoder.step(features, skipped, cached, keys, values, inputs)


class _Encoder(nn.Module):
    def __init__(self, network: Network):
        super().__init__()
        self.encoder = network.encoder

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder(features, lengths)


def require_onnx() -> None:
    """ConfigError when the packages of the extra `onnx` are not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"ONNX needs packages that are not installed ({error.name}). Install them: pip install 'chorus-asr[onnx]'"
        ) from None


def write_graphs(folder: Path, model: ModelFiles, int8: bool) -> list[str]:
    """Write the graphs that the model has into a folder, with `graphs.json`, features and tokens; their file names.

    ConfigError when a graph does not give what torch gives.
    """
    require_onnx()
    recognizer = model.recognizer
    names = []
    for graph in make_graphs(model):
        path = folder / f"{graph.name}.onnx"
        write_graph(path, graph, metadata={"sample_rate": str(model.features.sample_rate_hz)})
        check_graph(path, graph)
        names.append(path.name)
        if int8:
            names.append(quantise(path).name)

    encoder = recognizer.config.encoder
    description = {
        "format": 1,
        "graphs": names,
        "vocabulary_size": recognizer.vocabulary_size,
        "subsampling_factor": encoder.subsampling.factor,
        # Of the state of step.onnx: [layers, batch, heads, context, head_width] and [layers, batch, inputs, width].
        "layers": encoder.layers,
        "heads": encoder.heads,
        "head_width": encoder.width // encoder.heads,
        "width": encoder.width,
        "convolution_inputs": encoder.kernel_size - 1,
    }
    (folder / "graphs.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    front_end = {"config": model.features.model_dump(mode="json"), **model.statistics}
    (folder / "features.json").write_text(json.dumps(front_end, indent=2) + "\n", encoding="utf-8")
    write_tokens(folder / "tokens.txt", model)
    model.tokenizer.save(folder / "tokenizer")
    return names


def write_tokens(path: Path, model: ModelFiles) -> None:
    """The pieces and their ids, one a line, as sherpa-onnx and others read them; the blank is `<blank>`."""
    lines: list[str] = []
    changed: list[str] = []
    for number, piece in enumerate(model.tokenizer.pieces):
        # A piece that ends a line, or is a space, would give all pieces behind it other ids.
        written = SPACES.sub(lambda match: f"\\u{ord(match[0]):04x}", piece)
        if written != piece:
            changed.append(written)
        lines.append(f"{written} {number}\n")
    if changed:
        logger.warning(
            "%d pieces of the tokenizer hold white space, which %s cannot: they stand there with escapes, such as %s.",
            len(changed),
            path,
            changed[0][:80],
        )
    # As they are on every system: a reader splits them at line feeds.
    path.write_bytes("".join(lines).encode())


def make_graphs(model: ModelFiles) -> Iterator[Graph]:
    """The graphs of a model, each with examples."""
    network = build_network(model, separate_experts=True)
    recognizer = model.recognizer
    encoder = recognizer.config.encoder
    factor = encoder.subsampling.factor
    batch = Dim("batch")
    # Of one encoder frame the exporter would make a graph for one frame.
    time = Dim("time", min=factor + 1)
    features = torch.randn(2, 8 * factor + 3, recognizer.mel_bins)
    yield Graph(
        "encoder",
        _Encoder(network),
        {"features": features, "lengths": torch.tensor([8 * factor + 3, 5 * factor])},
        {"features": {0: batch, 1: time}, "lengths": {0: batch}},
        ("frames", "frame_lengths"),
    )

    frames = torch.randn(2, 9, encoder.width)
    num_frames = Dim("frames")
    yield Graph("ctc", network.ctc, {"frames": frames}, {"frames": {0: batch, 1: num_frames}}, ("logits",))

    if recognizer.config.decoder is not None:
        yield Graph(
            "decoder",
            network.decoder,
            {"frames": frames, "frame_lengths": torch.tensor([9, 5]), "tokens": torch.tensor([[2, 1, 1], [2, 1, 3]])},
            {"frames": {0: batch, 1: num_frames}, "frame_lengths": {0: batch}, "tokens": {0: batch, 1: Dim("tokens")}},
            ("logits",),
        )

    if encoder.causal_convolution:
        yield _step_graph(network, model)


def _step_graph(network: Network, model: ModelFiles) -> Graph:
    encoder = model.recognizer.config.encoder
    factor = encoder.subsampling.factor
    head_width = encoder.width // encoder.heads
    cache_shape = (encoder.layers, 2, encoder.heads, EXAMPLE_CONTEXT, head_width)
    inputs_shape = (encoder.layers, 2, encoder.kernel_size - 1, encoder.width)
    features = torch.randn(2, factor * (EXAMPLE_CHUNK + 1), model.recognizer.mel_bins)
    batch = Dim("batch")
    context = Dim("context")
    return Graph(
        "step",
        _Step(network),
        {
            "features": features,
            "skipped": torch.tensor([0, factor]),
            "cached": torch.tensor([3, 0]),
            "keys": torch.randn(cache_shape),
            "values": torch.randn(cache_shape),
            "inputs": torch.randn(inputs_shape),
        },
        {
            # One encoder frame for what lies before the chunk, and two of the chunk: of one it would make a constant.
            "features": {0: batch, 1: Dim("time", min=2 * factor + 1)},
            "skipped": {0: batch},
            "cached": {0: batch},
            "keys": {1: batch, 3: context},
            "values": {1: batch, 3: context},
            "inputs": {1: batch},
        },
        ("frames", "next_cached", "next_keys", "next_values", "next_inputs"),
    )


def write_graph(path: Path, graph: Graph, metadata: Mapping[str, str]) -> None:
    """Export a module with torch's exporter."""
    import onnx

    with torch.no_grad():
        program = torch.export.export(
            graph.module,
            tuple(graph.inputs.values()),
            dynamic_shapes=tuple(graph.dynamic[name] for name in graph.inputs),
            strict=False,
        )
    with _quiet():
        exported = torch.onnx.export(
            program,
            (),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            external_data=False,
            verbose=False,
        )
    assert exported is not None
    proto = exported.model_proto
    fold_transposes(proto)
    for key, value in metadata.items():
        entry = proto.metadata_props.add()
        entry.key = key
        entry.value = value
    onnx.save(proto, path)


def fold_transposes(proto: Any) -> None:
    """Store the matrices that the graph turns round turned round, and forget where each node came from.

    The exporter leaves that to every call where several layers use a matrix: it takes time, and no product with such a
    matrix would have an int8 form. With each node it keeps the lines of code that made it, with the paths of this
    machine.
    """
    from onnx import numpy_helper

    graph = proto.graph
    weights = {initializer.name: initializer for initializer in graph.initializer}
    nodes = []
    turned: dict[tuple[str, tuple[int, ...]], str] = {}
    new_names: dict[str, str] = {}
    for node in graph.node:
        if node.op_type != "Transpose" or node.input[0] not in weights:
            nodes.append(node)
            continue
        weight = weights[node.input[0]]
        permutation = tuple(node.attribute[0].ints)
        key = (weight.name, permutation)
        if key not in turned:
            array = numpy_helper.to_array(weight).transpose(permutation)
            turned[key] = node.output[0]
            weights[node.output[0]] = numpy_helper.from_array(np.ascontiguousarray(array), node.output[0])
        new_names[node.output[0]] = turned[key]

    used = set()
    for node in nodes:
        for position, name in enumerate(node.input):
            node.input[position] = new_names.get(name, name)
        used.update(node.input)
        del node.metadata_props[:]
    # Copies: what is written to must not be read from meanwhile.
    nodes = [type(node).FromString(node.SerializeToString()) for node in nodes]
    tensors = [type(weight).FromString(weight.SerializeToString()) for name, weight in weights.items() if name in used]
    del graph.node[:]
    del graph.initializer[:]
    del graph.value_info[:]
    del graph.metadata_props[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensors)
    for value in (*graph.input, *graph.output, *graph.initializer):
        del value.metadata_props[:]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what the exporter tells of its own progress and of packages that it would like to have."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def open_session(path: Path, threads: int = 1) -> Any:
    """An onnxruntime session on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Errors alone: it warns of initialisers that it folds.
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def check_graph(path: Path, graph: Graph) -> None:
    """Compare a graph with torch on its example and on the first row of it; ConfigError when they differ."""
    session = open_session(path)
    example = {name: tensor.numpy() for name, tensor in graph.inputs.items()}
    first_row = {}
    for name, array in example.items():
        batch_axis = min(axis for axis, size in graph.dynamic[name].items() if size.__name__ == "batch")
        first_row[name] = array.take([0], axis=batch_axis)
    for arrays in (example, first_row):
        expected = graph.output_of(arrays)
        outputs = session.run(None, dict(arrays))
        difference = largest_difference(outputs, expected)
        if difference > TOLERANCE:
            raise ConfigError(
                f"The ONNX graph {path.name} differs from torch by {difference:.2g}, more than {TOLERANCE:g}, so "
                "nothing was exported. Another version of torch, onnxscript or onnxruntime may mend it; please report "
                "these versions."
            )


def largest_difference(outputs: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """The largest difference, over the largest expected value where that is above 1; infinite for another shape."""
    largest = 0.0
    for output, reference in zip(outputs, expected, strict=True):
        if output.shape != reference.shape:
            return np.inf
        if reference.size == 0:
            continue
        scale = max(1.0, float(np.abs(reference).max()))
        difference = float(np.abs(output - reference).max()) / scale
        # Not max(): it passes over what is not a number.
        if not difference <= largest:
            largest = difference
    return largest


def quantise(path: Path) -> Path:
    """Write the int8 form of a graph beside it: weights of products as int8, activations at each call."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    target = path.with_name(path.name.removesuffix(".onnx") + INT8_SUFFIX)
    root = logging.getLogger()
    level = root.level
    # It recommends steps of its own on the root logger.
    root.setLevel(logging.ERROR)
    try:
        # Convolutions stay: their integer form is slower than the one in fp32.
        quantize_dynamic(
            path, target, weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=["MatMul", "Gemm"]
        )
    finally:
        root.setLevel(level)
    return target
