"""Trackers as tests open them, deaf to the settings of whoever runs the tests."""

import os
from pathlib import Path

import pytest

from launcher.tracking import Tracker, TrackingConfig


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("WANDB_") or name == "NETRC"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def open_tracker(stage: Path, config: TrackingConfig, resume_step: int = 0) -> Tracker:
    return Tracker(stage, config, run_name="mini", recipe={"seed": 1}, resume_step=resume_step)
