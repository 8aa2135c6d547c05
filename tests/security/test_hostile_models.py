"""Models and language models from strangers: one clear error, before anything takes memory."""

import gzip
import json
import os
from pathlib import Path

import pytest
import torch
from limits import run_limited

from launcher.errors import CheckpointError
from launcher.training.checkpoint.layout import manifest_digest
from launcher.training.checkpoint.reading import read_manifest
from model import adapter_files, export
from model.adapter_files import Adapter
from model.adapters import AdaptersConfig
from model.encoder import EncoderConfig
from model.export import load_encoder, load_model, read_description, save_model
from model.layers.subsampling import SubsamplingConfig
from model.recognizer import Recognizer, RecognizerConfig
from model.search.ngram import read_arpa

CHECKPOINT = Path(__file__).parents[1] / "fixtures/checkpoints/format-1/step-00000003"
MEL_BINS = 8
VOCABULARY = 5
HEADER = "\\data\\\nngram 1=2\n\n\\1-grams:\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished model of a few weights."""
    subsampling = SubsamplingConfig(channels=2)
    values = {"layers": 1, "width": 8, "heads": 2, "feedforward_width": 8, "kernel_size": 3}
    config = RecognizerConfig(encoder=EncoderConfig.model_validate({**values, "subsampling": subsampling}))
    recognizer = Recognizer(config, MEL_BINS, VOCABULARY)
    save_model(tmp_path, config, MEL_BINS, VOCABULARY, recognizer.state_dict())
    return tmp_path


def change_description(folder: Path, **changes: object) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def encoder_with(folder: Path, **changes: object) -> dict[str, object]:
    recognizer = json.loads((folder / "model.json").read_text())["recognizer"]
    return recognizer | {"encoder": recognizer["encoder"] | changes}


@pytest.mark.parametrize(
    "content", ["", "[]", "null", "{", '{"format": 1}', '{"format": true}', "[" * 200_000, '{"format": ' + "1" * 5000]
)
def test_a_description_that_is_none_is_refused(folder: Path, content: str) -> None:
    (folder / "model.json").write_text(content)
    for read in (read_description, load_model, load_encoder):
        with pytest.raises(ValueError, match=r"\w"):
            read(folder)


@pytest.mark.parametrize("value", [0, -1, 2_000_000, 10**30, 1.0, "5", None, True, [5]])
@pytest.mark.parametrize("key", ["vocabulary_size", "mel_bins"])
def test_a_size_that_no_model_has_is_refused(folder: Path, key: str, value: object) -> None:
    change_description(folder, **{key: value})
    with pytest.raises(ValueError, match=key):
        read_description(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"vocabulary_size": 1_000_000},
        {"mel_bins": 1024},
        {"layers": 200},
        {"width": 65_536},
        {"feedforward_width": 2**20},
        {"experts": {"count": 1024}},
    ],
)
def test_a_model_that_is_larger_than_its_weights_gets_no_memory(
    folder: Path, changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    if changes.keys() <= {"vocabulary_size", "mel_bins"}:
        change_description(folder, **changes)
    else:
        change_description(folder, recognizer=encoder_with(folder, **changes))
    devices = []
    build = export.ModelDescription.build_recognizer

    def watching_build(description: export.ModelDescription) -> Recognizer:
        devices.append(torch.empty(0).device.type)
        return build(description)

    monkeypatch.setattr(export.ModelDescription, "build_recognizer", watching_build)
    with pytest.raises(ValueError, match=r"model\.safetensors (holds|lacks) "):
        load_model(folder)
    # Where tensors have shapes and no bytes.
    assert devices == ([] if changes == {"layers": 200} else ["meta"])


def test_weights_that_were_cut_or_changed_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    assert load_model(folder).encoder.config.width == 8
    for length in (0, 1, 7, 8, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        for load in (load_model, load_encoder):
            with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
                load(folder)
    # Another name of a tensor in the header.
    path.write_bytes(content.replace(b"encoder.", b"encodex.", 1))
    with pytest.raises(ValueError, match=r"model\.safetensors (holds|lacks) "):
        load_model(folder)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "circle"])
def test_a_file_of_a_model_that_is_none_is_refused_and_not_waited_for(folder: Path, name: str, kind: str) -> None:
    path = folder / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(name)
    for load in (load_model, load_encoder):
        with pytest.raises((OSError, ValueError), match=r"is no regular file|symbolic links"):
            load(folder)


# --- language models ----------------------------------------------------------------------------------

HOSTILE_ARPA = {
    "a line without end": b"\\data\\\nngram 1=2\n\\1-grams:\n-1 " + b"a" * 2**20,
    "a first line without end": b"a" * 2**20,
    "empty lines": b"\n" * 300_000,
    "empty lines among n-grams": HEADER.encode() + b"\n" * 300_000,
    "more n-grams than announced": HEADER.encode() + b"-1 a\n" * 300_000,
    "10^12 n-grams": b"\\data\\\nngram 1=1000000000000\n",
    "a count of 5000 digits": b"\\data\\\nngram 1=" + b"1" * 5000 + b"\n\\1-grams:\n-1 a\n\\end\\\n",
    "an order of 5000 digits": b"\\data\\\nngram 1=1\n\\" + b"1" * 5000 + b"-grams:\n",
    "a probability that is none": b"\\data\\\nngram 1=1\n\\1-grams:\nnan a\n\\end\\\n",
    "an endless probability": b"\\data\\\nngram 1=1\n\\1-grams:\n-inf a\n\\end\\\n",
    "a back-off beyond all numbers": b"\\data\\\nngram 1=1\n\\1-grams:\n-1 a 1e308\n\\end\\\n",
    "no n-gram": b"\\data\\\nngram 1=0\n\\1-grams:\n\\end\\\n",
    "the start of a sentence alone": b"\\data\\\nngram 1=1\n\\1-grams:\n-99 <s>\n\\end\\\n",
    "n-grams of no word": b"\\data\\\nngram 0=1\n\\0-grams:\n-1\n\\end\\\n",
    "no UTF-8": HEADER.encode() + b"-1 \xff\n",
}


def test_hostile_language_models_are_one_clear_error_in_little_memory(tmp_path: Path) -> None:
    for name, content in HOSTILE_ARPA.items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    (tmp_path / "a gigabyte in one line.gz").write_bytes(gzip.compress(b"\\data\\\n" + bytes(2**28)) * 4)
    for name, content in {"cut": gzip.compress(b"a" * 99)[:-9], "no gzip": b"abc", "empty": b""}.items():
        (tmp_path / f"{name}.gz").write_bytes(content)
    code = """
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        read_arpa(path)
    except (ValueError, OSError):
        print(path.name)
"""
    imports = "import sys\nfrom pathlib import Path\nfrom model.search.ngram import read_arpa\n"
    refused = run_limited(imports, code, tmp_path).splitlines()
    assert refused == sorted(path.name for path in tmp_path.iterdir())


def test_a_language_model_with_comments_and_blanks_stays_readable(tmp_path: Path) -> None:
    path = tmp_path / "a.arpa"
    path.write_text("a comment\n\n" + HEADER + "-1 a\n\n-2 b\n\n\\end\\\n")
    assert read_arpa(path).knows("a")


# --- checkpoints --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../rank-00000.safetensors", "/etc/passwd", "rank-00000.safetensors/../x", "", "x\n"])
@pytest.mark.parametrize("section", ["files", "pieces"])
def test_a_manifest_that_names_files_elsewhere_is_refused(tmp_path: Path, section: str, name: str) -> None:
    manifest = json.loads((CHECKPOINT / "manifest.json").read_text())
    manifest[section][0]["name" if section == "files" else "file"] = name
    write_manifest(tmp_path, manifest)
    with pytest.raises(CheckpointError, match=rf"it has, at {section}\.0\."):
        read_manifest(tmp_path)


def test_a_manifest_of_a_tensor_that_no_file_holds_is_refused(tmp_path: Path) -> None:
    manifest = json.loads((CHECKPOINT / "manifest.json").read_text())
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path)["step"] == 3
    first = next(iter(manifest["shapes"]))
    write_manifest(tmp_path, manifest | {"shapes": manifest["shapes"] | {first: [10**12]}})
    with pytest.raises(CheckpointError, match="its shape is"):
        read_manifest(tmp_path)


def write_manifest(folder: Path, manifest: dict[str, object]) -> None:
    """Write a manifest with the digest that whoever changes it on purpose would give it."""
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    (folder / "manifest.json").write_text(json.dumps(content | {"sha256": manifest_digest(content)}))


# --- adapters -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rank", "names", "words"),
    [
        (65_536, {}, "describes"),
        (2, {}, "it lacks"),
        (1, {"encoder.layers.9.adapters.x": (1,)}, "no tensor"),
        (1, {"encoder.layers.0.final_norm.weight": (2**20,)}, "describes"),
    ],
)
def test_an_adapter_that_is_larger_than_its_file_gets_no_memory(
    folder: Path, rank: int, names: dict[str, tuple[int, ...]], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_model(folder)
    state = {name: torch.zeros(shape) for name, shape in names.items()}
    if words == "describes" and not state:
        state = {"encoder.layers.0.final_norm.weight": torch.zeros(9)}
    config = AdaptersConfig(kind="lora", rank=rank)
    adapter = Adapter(config, adapter_files.weights_sha256(base.state_dict()), state)
    devices = []

    class WatchedRecognizer(Recognizer):
        def __init__(self, *arguments: object) -> None:
            devices.append(torch.empty(0).device.type)
            super().__init__(*arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(adapter_files, "Recognizer", WatchedRecognizer)
    with pytest.raises(ValueError, match=rf"not fit: .*{words}"):
        adapter_files.adapted(base, adapter)
    with pytest.raises(ValueError, match=rf"not fit: .*{words}"):
        adapter_files.AdapterBank(base).add("a", adapter)
    # Where tensors have shapes and no bytes.
    assert set(devices) == {"meta"}
