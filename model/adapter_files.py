"""What an adaptation changed of a finished model, as a folder of its own: `adapter.json` and `adapter.safetensors`.

The file holds the tensors that the model did not have (adapters), and those that are not as they were (norms, say); it
fits that model alone, which it names by the SHA-256 of its weights. `AdapterBank` has several of them for one model.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.adapters import AdaptersConfig, BlockAdapters
from model.export import WithoutValues, check_regular, read_stored, save_tensors, validated
from model.recognizer import Recognizer

# A later version reads earlier formats; a later format is refused.
FORMAT = 1
DESCRIPTION_FILE = "adapter.json"
WEIGHTS_FILE = "adapter.safetensors"


@dataclass(frozen=True)
class Adapter:
    """What an adaptation changed.

    config: the adapters that the encoder got, None where only its own tensors changed. base_sha256: of the weights of
    the model that was adapted. state: new and changed tensors by their names. facts: what else the folder says.
    """

    config: AdaptersConfig | None
    base_sha256: str
    state: dict[str, Tensor]
    facts: dict[str, Any] = field(default_factory=dict)


def weights_sha256(state: dict[str, Tensor]) -> str:
    """A SHA-256 over names, shapes and values, whatever the file that holds them."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def adapter_of(base: Recognizer, state: dict[str, Tensor], config: AdaptersConfig | None) -> Adapter:
    """What sets the weights `state` apart from those of the model that they began as."""
    base_state = base.state_dict()
    changed = {}
    for name, tensor in state.items():
        before = base_state.get(name)
        if before is None or not torch.equal(before, tensor.to(before.dtype)):
            changed[name] = tensor
    return Adapter(config, weights_sha256(base_state), changed)


def write_adapter(folder: Path, adapter: Adapter) -> None:
    """Write an adapter into an empty folder."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in adapter.state.items()}
    save_tensors(tensors, folder / WEIGHTS_FILE)
    config = None
    if adapter.config is not None:
        config = adapter.config.model_dump(mode="json")
    description = {**adapter.facts, "format": FORMAT, "base_sha256": adapter.base_sha256, "adapters": config}
    (folder / DESCRIPTION_FILE).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def read_adapter(folder: Path) -> Adapter:
    """Read what `write_adapter` wrote. OSError when it is not there, ValueError when it is something else."""
    path = folder / DESCRIPTION_FILE
    stored = read_stored(path, "adapter")
    if stored["format"] > FORMAT:
        raise ValueError(f"{folder} holds an adapter of format {stored['format']}, this version reads up to {FORMAT}")
    base_sha256 = stored.get("base_sha256")
    if not isinstance(base_sha256, str):
        raise ValueError(f"{path} does not say which model it is for (base_sha256)")
    config = None
    if stored.get("adapters") is not None:
        config = validated(AdaptersConfig, stored["adapters"], path)

    weights = folder / WEIGHTS_FILE
    check_regular(weights)
    state = {}
    try:
        with safe_open(weights, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  no mapping: it has nothing else to go over
                state[name] = tensors.get_tensor(name)
    except (SafetensorError, MemoryError) as error:
        raise ValueError(f"{weights} cannot be read: {error}") from None
    facts = {key: value for key, value in stored.items() if key not in ("format", "base_sha256", "adapters")}
    return Adapter(config, base_sha256, state, facts)


def check_fits(base: Recognizer, adapter: Adapter) -> None:
    """ValueError where an adapter was trained on another model than `base`."""
    sha256 = weights_sha256(base.state_dict())
    if sha256 != adapter.base_sha256:
        raise ValueError(
            f"it was trained on the model with weights {adapter.base_sha256[:12]}, and this one has {sha256[:12]}"
        )


def adapted(base: Recognizer, adapter: Adapter) -> Recognizer:
    """A new recogniser, `base` with an adapter in it, in evaluation mode; ValueError where it is of another model."""
    check_fits(base, adapter)
    encoder = base.config.encoder.model_copy(update={"adapters": adapter.config})
    config = base.config.model_copy(update={"encoder": encoder})
    reason = _misfit(base, adapter)
    if reason:
        raise ValueError(f"its tensors do not fit: {reason}")
    recognizer = Recognizer(config, base.mel_bins, base.vocabulary_size)
    recognizer.to(next(base.parameters()).dtype)
    state = {**base.state_dict(), **adapter.state}
    try:
        recognizer.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"its tensors do not fit: {reason[:200]}") from None
    return recognizer.eval()


def _misfit(base: Recognizer, adapter: Adapter) -> str:
    """What of an adapter is not as its description makes it, empty where all is.

    Seen before anything gets memory: a description of a few bytes may ask for more than a machine has, but not for more
    than its file holds.
    """
    encoder = base.config.encoder.model_copy(update={"adapters": adapter.config})
    with torch.device("meta"), WithoutValues():
        config = base.config.model_copy(update={"encoder": encoder})
        expected = Recognizer(config, base.mel_bins, base.vocabulary_size).state_dict()
    for name, tensor in adapter.state.items():
        if name not in expected:
            return f"{name[:80]} is no tensor of its adapters or of the model"
        if tensor.shape != expected[name].shape:
            return f"{name} has the shape {tuple(tensor.shape)}, and it describes {tuple(expected[name].shape)}"
    missing = sorted(expected.keys() - adapter.state.keys() - base.state_dict().keys())
    if missing:
        return f"it lacks {missing[0]}"
    return ""


class AdapterBank:
    """Several adapters of one model in memory, of which one at a time is in use.

    The model's own weights are there once. To use another adapter, or none, moves no values but those it changed.
    """

    def __init__(self, base: Recognizer):
        self.recognizer = base
        self._sha256 = weights_sha256(base.state_dict())
        # Of the model's own tensors those that any adapter changes, as they were.
        self._originals: dict[str, Tensor] = {}
        self._adapters: dict[str, tuple[Adapter, list[BlockAdapters]]] = {}

    @property
    def names(self) -> list[str]:
        """The adapters that were added."""
        return list(self._adapters)

    def add(self, name: str, adapter: Adapter) -> None:
        """Add an adapter under a name, and use none; ValueError where it is of another model."""
        if adapter.base_sha256 != self._sha256:
            raise ValueError(
                f"adapter {name} was trained on the model with weights {adapter.base_sha256[:12]}, and this one has "
                f"{self._sha256[:12]}"
            )
        self.select(None)
        reason = _misfit(self.recognizer, adapter)
        if reason:
            raise ValueError(f"adapter {name} does not fit: {reason}")
        tensors = self._tensors()
        own_modules: dict[str, Tensor] = {}
        for tensor_name, value in adapter.state.items():
            if tensor_name not in tensors:
                own_modules[tensor_name] = value
                continue
            if tensors[tensor_name].shape != value.shape:
                raise ValueError(f"adapter {name} has {tensor_name} of another shape than the model")
            self._originals.setdefault(tensor_name, tensors[tensor_name].clone())

        modules: list[BlockAdapters] = []
        if adapter.config is not None:
            modules = self.recognizer.encoder.build_adapters(adapter.config)
            owners = f"encoder.{adapter.config.scope}s"
            for index, module in enumerate(modules):
                prefix = f"{owners}.{index}.adapters."
                state = {}
                for tensor_name in list(own_modules):
                    if tensor_name.startswith(prefix):
                        state[tensor_name.removeprefix(prefix)] = own_modules.pop(tensor_name)
                try:
                    module.load_state_dict(state)
                except RuntimeError as error:
                    raise ValueError(f"adapter {name} does not fit: {' '.join(str(error).split())[:200]}") from None
                module.to(next(self.recognizer.parameters())).eval()
        if own_modules:
            raise ValueError(f"adapter {name} holds {min(own_modules)[:80]}, no tensor of its adapters or of the model")
        self._adapters[name] = (adapter, modules)

    def select(self, name: str | None) -> None:
        """Use the adapter of that name from now on, or with None the model as it was. KeyError where there is none."""
        adapter = None
        modules: list[BlockAdapters] = []
        if name is not None:
            adapter, modules = self._adapters[name]
        tensors = self._tensors()
        for changed, original in self._originals.items():
            tensors[changed].copy_(original)
        encoder = self.recognizer.encoder
        encoder.set_adapters([None] * len(encoder.layers), "layer")
        encoder.set_adapters([None] * len(encoder.blocks), "block")
        if adapter is None:
            return
        for changed, value in adapter.state.items():
            if changed in self._originals:
                tensors[changed].copy_(value)
        if adapter.config is not None:
            encoder.set_adapters(modules, adapter.config.scope)

    def _tensors(self) -> dict[str, Tensor]:
        # Detached: they are written to, and hold no gradient.
        return {name: tensor.detach() for name, tensor in self.recognizer.state_dict().items()}
