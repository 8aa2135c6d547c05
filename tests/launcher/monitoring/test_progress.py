import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from launcher.monitoring import progress
from launcher.monitoring.progress import MetricsTail, Pace, PlainDisplay, TerminalDisplay

ROWS = [{"step": step, "loss": 3.0, "audio_s_per_s": 40.0, "time": 2.0 * step} for step in range(1, 11)]


def append(path, rows):
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def test_only_whole_new_rows_are_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append(path, ROWS[:2])
    tail = MetricsTail(path)
    append(path, ROWS[2:4])
    with path.open("a") as file:
        file.write('{"step": 5, "lo')
    assert tail.new_rows() == ROWS[2:4]
    with path.open("a") as file:
        file.write('ss": 1.0}\n')
    assert tail.new_rows() == [{"step": 5, "loss": 1.0}]
    assert tail.new_rows() == []


def test_a_file_cut_back_by_a_resumed_stage_is_read_on_from_its_new_end(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append(path, ROWS[:6])
    tail = MetricsTail(path)
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:3]))
    assert tail.new_rows() == []
    append(path, ROWS[3:5])
    assert tail.new_rows() == ROWS[3:5]


@given(
    st.lists(st.integers(min_value=1, max_value=50), min_size=2, max_size=30),
    st.floats(min_value=0.01, max_value=100),
)
def test_the_pace_does_not_depend_on_how_many_steps_a_row_stands_for(strides, step_s):
    pace, step = Pace(), 0
    for stride in strides:
        step += stride
        pace.add({"step": step, "time": step * step_s})
    assert pace.step_s() == pytest.approx(step_s, rel=1e-6)


def test_the_pace_starts_anew_when_a_stage_goes_back_to_a_checkpoint():
    pace = Pace()
    for step, time in [(1, 1.0), (2, 2.0), (1, 100.0), (2, 105.0)]:
        pace.add({"step": step, "time": time})
    assert pace.step_s() == 5.0


def test_plain_lines_say_how_long_the_stage_and_the_run_will_take():
    stream = io.StringIO()
    display = PlainDisplay(stream, seconds_between_lines=0)
    display.begin("teacher", steps=40, later_steps=60)
    display.update(ROWS)
    assert stream.getvalue() == (
        "teacher: step 10/40, loss 3.000, 40.0 s of audio per s, 1 min left, about 3 min left of the run\n"
    )


def test_the_time_left_is_shown_from_the_first_row_on_and_no_more_with_the_last():
    stream = io.StringIO()
    display = PlainDisplay(stream, seconds_between_lines=0)
    display.begin("teacher", steps=20)
    display.update([{"step": 10, "time": 100.0, "step_s": 3.0}])
    display.update([{"step": 20, "time": 120.0, "step_s": 2.0}])
    assert stream.getvalue() == "teacher: step 10/20, 30 s left\nteacher: step 20/20\n"


def test_a_number_that_was_not_finite_is_shown_as_such():
    stream = io.StringIO()
    display = PlainDisplay(stream, seconds_between_lines=0)
    display.begin("teacher", steps=40)
    display.update([{"step": 1, "loss": None, "validation/cer": None, "audio_s_per_s": 40.0}])
    assert stream.getvalue() == "teacher: step 1/40, loss nan, validation CER nan%, 40.0 s of audio per s\n"


def test_plain_lines_come_at_intervals_and_once_more_at_the_end():
    stream = io.StringIO()
    display = PlainDisplay(stream, seconds_between_lines=60)
    display.begin("teacher", steps=40)
    for row in ROWS:
        display.update([row])
    assert stream.getvalue() == ""
    display.end()
    display.end()
    assert stream.getvalue().count("\n") == 1
    assert "step 10/40" in stream.getvalue()


def test_a_terminal_shows_one_bar_and_keeps_what_is_said():
    stream = io.StringIO()
    display = TerminalDisplay(Console(file=stream, force_terminal=True, width=120))
    display.begin("teacher", steps=40)
    display.update(ROWS)
    display.say("restart [1] of 3")
    display.end()
    display.begin("student", steps=40)
    display.end()
    assert "restart [1] of 3" in stream.getvalue()
    assert "teacher: step 10/40, loss 3.000" in stream.getvalue()


def test_work_in_this_process_shows_the_time_that_is_left(monkeypatch):
    clock = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock)
    stream = io.StringIO()
    display = PlainDisplay(stream, seconds_between_lines=5)
    display.begin("prepare corpus", 1)
    # It goes on where an earlier preparation ended: what that did says nothing about the pace of this one.
    for done in range(500, 901):
        display.count("utterances of train", done, 900)
        clock += 0.125
    # Another split has a pace of its own.
    display.count("utterances of dev", 1, 10)
    display.end()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "prepare corpus: utterances of train 540/900, 45 s left"
    assert lines[-2] == "prepare corpus: utterances of train 900/900"
    assert lines[-1] == "prepare corpus: utterances of dev 1/10"
