"""A DeepSpeed file says how ZeRO communicates: it writes nothing, starts nothing and connects to nothing."""

import json

import pytest

from launcher.errors import ConfigError
from launcher.recipe import load_recipe, read_deepspeed_config
from launcher.recipe.deepspeed_config import MAX_BYTES, refusal

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
        (b" " * (MAX_BYTES + 1), "more than"),
    ],
)
def test_a_broken_file_is_one_paragraph(tmp_path, content, fragment):
    path = tmp_path / "given.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=fragment):
        read_deepspeed_config(path)
