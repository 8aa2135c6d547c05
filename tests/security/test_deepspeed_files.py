"""A DeepSpeed file says how ZeRO communicates: it writes nothing, starts nothing and connects to nothing."""

import json
import os
from pathlib import Path

import pytest

from launcher.errors import ConfigError
from launcher.recipe import load_recipe, read_deepspeed_config
from launcher.recipe.deepspeed_config import ALLOWED_ZERO, DEEPSPEED_CONFIGS, MAX_BYTES, refusal

WRITERS_AND_STARTERS = {
    "flops_profiler": {"enabled": True, "output_file": "/home/user/.bashrc"},
    "tensorboard": {"enabled": True, "output_path": "/tmp/x"},
    "wandb": {"enabled": True, "team": "strangers"},
    "csv_monitor": {"enabled": True, "output_path": "/tmp/x"},
    "comet": {"enabled": True},
    "monitor_config": {},
    "autotuning": {"enabled": True, "results_dir": "/tmp/x"},
    "elasticity": {"enabled": True},
    "checkpoint": {"load_universal": True},
    "nebula": {"enabled": True, "persistent_storage_path": "/tmp/x"},
    "datastates_ckpt": {},
    "aio": {},
    "data_efficiency": {"enabled": True},
    "curriculum_learning": {"enabled": True},
    "compression_training": {},
    "hybrid_engine": {"enabled": True},
    "compile": {"backend": "x.y"},
    "tensor_parallel": {},
    "pipeline": {},
    "no_such_key": 1,
}


@pytest.mark.parametrize(("key", "value"), WRITERS_AND_STARTERS.items())
def test_a_key_that_writes_starts_or_connects_is_refused_before_anything_starts(tmp_path, key, value):
    path = tmp_path / "given.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}, key: value}))
    with pytest.raises(ConfigError, match=f"has '{key}'.*Remove what is not among"):
        load_recipe("mini", [f"cluster.deepspeed={path}"])


@pytest.mark.parametrize("key", ["zenflow", "leaf_module", "elastic_checkpoint", "load_from_fp32_weights", "nothing"])
def test_a_key_of_zero_that_names_code_or_loads_weights_is_refused(key):
    reason = refusal({"zero_optimization": {"stage": 3, key: True}}, 1)
    assert reason
    assert f"has '{key}' in zero_optimization" in reason


def test_settings_of_communication_are_taken():
    zero = {"stage": 3, "overlap_comm": True, "stage3_prefetch_bucket_size": 1000, "round_robin_gradients": True}
    assert refusal({"zero_optimization": zero, "communication_data_type": "fp32", "comms_logger": {}}, 2) is None


NO_TRUTH_VALUES = [1, 0, "true", [], {}, None, 1.5]
NO_NUMBERS = [-1, 1.5, "5e8", True, None, [], {}, float("nan"), float("inf"), 10**30]


@pytest.mark.parametrize("key", sorted(ALLOWED_ZERO))
def test_a_value_of_another_kind_is_refused_before_anything_starts(key):
    values = NO_TRUTH_VALUES
    if ALLOWED_ZERO[key] in ("number", "bucket"):
        values = NO_NUMBERS
    if key == "stage":
        values = [-1, 4, 1.0, True, "2", None, [], {}, float("nan")]
    for value in values:
        if key == "overlap_comm" and value is None:
            continue
        reason = refusal({"zero_optimization": {"stage": 2, key: value}}, 2)
        assert reason, value
        assert f"zero_optimization.{key}, which is " in reason


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("communication_data_type", "os.system"),
        ("communication_data_type", 32),
        ("communication_data_type", ["fp32"]),
        ("gradient_predivide_factor", 0),
        ("gradient_predivide_factor", float("nan")),
        ("gradient_predivide_factor", "2"),
        ("prescale_gradients", "yes"),
        ("dump_state", 1),
        ("comms_logger", []),
        ("comms_logger", "x"),
        ("comms_logger", None),
        ("comms_logger", {"enabled": True, "file": "/tmp/x"}),
        ("comms_logger", {"enabled": 1}),
        ("comms_logger", {"prof_ops": "all_reduce"}),
        ("comms_logger", {"prof_ops": [1]}),
        ("zero_optimization", []),
        ("zero_optimization", None),
        ("zero_optimization", {"stage": 2, "reduce_bucket_size": 10**12}),
    ],
)
def test_a_setting_that_deepspeed_would_stumble_over_is_refused(key, value):
    reason = refusal({"zero_optimization": {"stage": 2}, key: value}, 2)
    assert reason
    assert key in reason


def test_every_plan_that_comes_along_is_taken_and_numbers_may_be_written_as_they_often_are():
    for file in DEEPSPEED_CONFIGS.glob("*.json"):
        assert refusal(read_deepspeed_config(file), 1) is None
    zero = {"stage": 3, "reduce_bucket_size": 5e8, "stage3_max_live_parameters": 1e9, "overlap_comm": None}
    logger = {"enabled": True, "verbose": False, "prof_all": True, "debug": False, "prof_ops": ["all_reduce"]}
    values = {"zero_optimization": zero, "communication_data_type": "BF16", "gradient_predivide_factor": 2}
    assert refusal(values | {"comms_logger": logger}, 2) is None


@pytest.mark.parametrize("kind", ["device", "pipe"])
def test_a_file_that_is_none_is_neither_read_nor_waited_for(tmp_path, kind):
    path = Path("/dev/zero")
    if kind == "pipe":
        path = tmp_path / "pipe.json"
        os.mkfifo(path)
    with pytest.raises(ConfigError, match="no regular file"):
        read_deepspeed_config(path)


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"[" * 200_000, "nested too deep"),
        (b'{"a":' * 200_000, "nested too deep"),
        (b'{"zero_optimization": {}, "zero_optimization": {"stage": 3}}', "is given twice"),
        (b"1" * 5000, "not readable as JSON"),
        (b"\xff\xfe", "not readable as JSON"),
        (b"", "not readable as JSON"),
        (b"[]", "holds no JSON object"),
        (b" " * (MAX_BYTES + 1), "bytes, more than"),
    ],
)
def test_a_broken_file_is_one_paragraph(tmp_path, content, fragment):
    path = tmp_path / "given.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=fragment):
        read_deepspeed_config(path)
