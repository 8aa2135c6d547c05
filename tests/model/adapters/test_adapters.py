"""Adapters begin as nothing, are merged into an equal model, and change with one call."""

import json
from typing import Any

import pytest
import torch

from model.adapter_files import AdapterBank, adapted, adapter_of, read_adapter, write_adapter
from model.adapters import AdaptersConfig
from model.encoder import EncoderConfig
from model.merging import merge_adapters
from model.recognizer import Recognizer, RecognizerConfig

MEL_BINS = 20
FEATURES = torch.randn(2, 40, MEL_BINS, generator=torch.Generator().manual_seed(3))
LENGTHS = torch.tensor([40, 23])


def make(seed: int = 0, adapters: dict[str, Any] | None = None, **encoder: Any) -> Recognizer:
    """A recogniser in which nothing is zero: adapters that have learnt something, norms that differ."""
    values = {"layers": 4, "groups": 1, "width": 16, "heads": 2, "feedforward_width": 24, "kernel_size": 3}
    values |= {"subsampling": {"channels": 4}, **encoder, "adapters": adapters}
    torch.manual_seed(seed)
    config = RecognizerConfig.model_validate({"encoder": values, "decoder": {"layers": 1, "heads": 2}})
    model = Recognizer(config, MEL_BINS, vocabulary_size=7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter) * parameter.shape[-1] ** -0.5
    return model.double().eval()


def logits(model: Recognizer) -> torch.Tensor:
    with torch.no_grad():
        return model(FEATURES.to(next(model.parameters()).dtype), LENGTHS).ctc_BSV


def with_trained_adapter(base: Recognizer, config: dict | None, changed: tuple[str, ...] = ()) -> Recognizer:
    """The model as a training with these adapters may leave it, whose own `changed` tensors moved too."""
    shape: dict[str, Any] = base.config.encoder.model_dump(exclude={"adapters"})
    trained = make(adapters=config, **shape)
    state = trained.state_dict() | base.state_dict()
    for name in changed:
        state[name] = state[name] + 0.5
    trained.load_state_dict(state)
    return trained


LORA = {"kind": "lora", "rank": 2, "scale": 2.0}
BOTTLENECK = {"kind": "bottleneck", "rank": 3, "scale": 0.5}


@pytest.mark.parametrize("adapters", [LORA, BOTTLENECK, LORA | {"scope": "block"}])
def test_a_model_with_new_adapters_is_the_one_without(adapters):
    base = make()
    config = base.config.model_copy(
        update={"encoder": base.config.encoder.model_copy(update={"adapters": AdaptersConfig(**adapters)})}
    )
    fresh = Recognizer(config, MEL_BINS, 7).double().eval()
    fresh.load_state_dict(fresh.state_dict() | base.state_dict())
    assert torch.equal(logits(fresh), logits(base))


EXPERTS = {"count": 3}
SHAPES = {
    "shared": {},
    "experts": {"experts": EXPERTS},
    "experts first, two per frame": {"experts": {"count": 3, "placement": "first", "router": {"per_frame": 2}}},
    "experts in both places": {"experts": EXPERTS | {"placement": "both"}},
    "one router for all": {"experts": EXPERTS | {"router": {"scope": "conditioned"}}},
    "a group's norms and router": {"norms": "group", "experts": EXPERTS | {"router": {"scope": "group"}}},
    "two blocks by turns": {"groups": 2, "sharing": "cyclic"},
    "private layers": {"private_head": 1, "private_tail": 1, "groups": 1},
    "nothing shared": {"groups": None},
    "relative positions and batch norm": {"positions": "relative", "convolution_norm": "batch"},
}


# Every shape with adapters of layers; a sample of them with those of blocks.
MERGED = [(shape, "layer") for shape in SHAPES] + [("experts", "block"), ("two blocks by turns", "block")]


@pytest.mark.parametrize("adapters", [LORA, BOTTLENECK], ids=["lora", "bottleneck"])
@pytest.mark.parametrize(("shape", "scope"), MERGED)
def test_merged_adapters_give_equal_outputs(shape, scope, adapters):
    model = make(adapters=adapters | {"scope": scope}, **SHAPES[shape])
    merged = merge_adapters(model)
    # In fp64 what is left is the rounding of routers, which are fp32: a frame's two weights add up to 1 but for that.
    assert torch.allclose(logits(merged), logits(model), atol=1e-7, rtol=0)
    assert torch.allclose(logits(merged.float()), logits(model.float()), atol=1e-6, rtol=1e-5)
    assert merged.config.encoder.adapters is None
    assert not any("adapters" in name for name in merged.state_dict())
    # Adapters of whole blocks leave blocks shared; those of layers take them apart.
    if scope == "block":
        assert merged.config.encoder.num_blocks == model.config.encoder.num_blocks
    else:
        assert merged.config.encoder.num_blocks == model.config.encoder.layers


def test_a_residual_mixture_has_low_rank_adapters_and_no_bottleneck():
    shape: dict[str, Any] = {"experts": EXPERTS | {"residual": True}}
    model = make(adapters=LORA, **shape)
    assert torch.allclose(logits(merge_adapters(model)), logits(model), atol=1e-10, rtol=0)
    with pytest.raises(ValueError, match="choose adapters of kind lora"):
        EncoderConfig.model_validate(shape | {"adapters": BOTTLENECK})


def test_a_choice_dropped_by_a_full_expert_is_not_adapted_either():
    model = make(adapters=BOTTLENECK, experts={"count": 2, "capacity_factor": 0.5})
    routing = model.train().encoder(FEATURES.double(), LENGTHS).routings[0]
    weights_N1 = routing.kept_weights()
    assert torch.equal(weights_N1[:, 0] == 0, ~routing.kept_NK[:, 0])


def test_low_rank_adapters_stand_only_beside_the_parts_that_are_asked_for():
    sites = set()
    for name, _ in make(adapters=LORA | {"parts": ["attention"]}).encoder.layers[0].named_parameters():
        if name.startswith("adapters."):
            sites.add(name.split(".")[1])
    assert sites == {"query_key_value", "attention_output"}
    with pytest.raises(ValueError, match="parts is set"):
        AdaptersConfig(kind="bottleneck", parts=("attention",))


def test_an_adapter_is_a_small_folder_that_fits_its_model_alone(tmp_path):
    base = make()
    trained = with_trained_adapter(base, LORA, ("encoder.layers.1.final_norm.weight",))
    write_adapter(tmp_path, adapter_of(base, trained.state_dict(), trained.config.encoder.adapters))
    adapter = read_adapter(tmp_path)
    names = {name for name in adapter.state if ".adapters." not in name}
    assert names == {"encoder.layers.1.final_norm.weight"}
    assert adapter.config == AdaptersConfig(**LORA)
    assert torch.equal(logits(adapted(base, adapter)), logits(trained))
    with pytest.raises(ValueError, match="was trained on the model with weights"):
        adapted(make(seed=1), adapter)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"format": True},
        {"base_sha256": None},
        {"adapters": {"kind": "lora", "rank": 0}},
        {"adapters": ["lora"]},
    ],
)
def test_a_folder_that_is_no_adapter_is_refused_with_a_reason(tmp_path, change):
    base = make()
    write_adapter(tmp_path, adapter_of(base, with_trained_adapter(base, LORA).state_dict(), AdaptersConfig(**LORA)))
    path = tmp_path / "adapter.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match="adapter"):
        read_adapter(tmp_path)


def test_several_adapters_of_one_model_are_in_memory_and_change_with_one_call():
    base = make(experts=EXPERTS)
    expected: dict[str | None, torch.Tensor] = {None: logits(base)}
    configs = {
        "low rank": LORA,
        "of blocks": BOTTLENECK | {"scope": "block"},
        "norms": None,
        "both": BOTTLENECK,
    }
    adapters = {}
    for name, config in configs.items():
        changed = () if name in ("low rank", "of blocks") else ("encoder.layers.2.attention_norm.bias",)
        trained = with_trained_adapter(base, config, changed)
        expected[name] = logits(trained)
        adapters[name] = adapter_of(base, trained.state_dict(), trained.config.encoder.adapters)
    own_values = sum(parameter.numel() for parameter in base.parameters())

    bank = AdapterBank(base)
    for name, adapter in adapters.items():
        bank.add(name, adapter)
    assert bank.names == list(adapters)
    for name in ("norms", "low rank", None, "both", "of blocks", "norms", None):
        bank.select(name)
        assert torch.equal(logits(bank.recognizer), expected[name]), name
    assert sum(parameter.numel() for parameter in base.parameters()) == own_values
    with pytest.raises(KeyError):
        bank.select("another")
    with pytest.raises(ValueError, match="was trained on the model"):
        bank.add("foreign", adapter_of(make(seed=5), make(seed=5).state_dict(), None))
