"""ZeRO 3 cuts every parameter into shards: what looks at a model between steps must still see whole ones."""

import json

import processes
import pytest
from paths import HELPERS
from small_runs import STAGE

from launcher.run_folder import read_json
from launcher.tracking import read_metrics


def test_a_run_that_validates_on_its_way_measures_the_same_under_zero_3(make_run):
    measured = []
    for deepspeed in ("zero2", "zero3"):
        short = [f"stages.{STAGE}.{key}={value}" for key, value in {"steps": 6, "validate_every": 3}.items()]
        run = make_run(deepspeed, (f"cluster.deepspeed={deepspeed}", *short))
        processes.run(["-m", "launcher.worker", str(run.path), STAGE], 2, run.path / "log")
        assert read_json(run.stage(STAGE).done_file) == {"status": "done", "step": 6}
        rows = read_metrics(run.stage(STAGE).metrics_file)
        names = ("loss", "grad_norm", "validation/loss", "validation/cer")
        measured.append([row[name] for row in rows for name in names if name in row])
    assert len(measured[0]) == 2 * 4
    assert measured[1] == pytest.approx(measured[0], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("deepspeed", ["zero1", "zero2", "zero3"])
def test_a_training_taken_back_on_its_way_repeats_itself(tmp_path, deepspeed):
    script = HELPERS / "rewind.py"
    processes.run([str(script), str(tmp_path), deepspeed], 2, tmp_path / "log")
    before, after = json.loads((tmp_path / "losses.json").read_text())
    assert before == after
