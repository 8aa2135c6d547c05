"""The wall time of a stage is accounted for, whatever happened to it."""

from dataclasses import asdict

import pytest

from launcher.monitoring.goodput import measure_goodput


class Clock:
    """Writes the events and rows of a run that goes as it is told."""

    def __init__(self):
        self.now, self.step, self.events, self.rows = 1000.0, 0, [], []

    def event(self, name: str, after_s: float = 0.0, **details) -> None:
        self.now += after_s
        self.events.append({"event": name, "stage": "teacher", "time": self.now, **details})

    def start(self, start_s: float = 5.0) -> None:
        self.event("processes_started", processes=2)
        self.event("training_started", start_s, step=self.step)

    def train(self, steps: int, step_s: float = 1.0, data_wait: float = 0.25) -> None:
        for _ in range(steps):
            self.now += step_s
            self.step += 1
            self.rows.append(
                {"step": self.step, "loss": 1.0, "step_s": step_s, "data_wait": data_wait, "time": self.now}
            )

    def pause(self, kind: str, seconds: float) -> None:
        self.now += seconds
        self.rows.append({"step": self.step, kind: seconds, "time": self.now})

    def lose(self, to_step: int) -> None:
        self.event("process_lost", checkpoint_step=to_step)
        self.rows = [row for row in self.rows if row["step"] <= to_step]
        self.step = to_step

    def goodput(self) -> dict[str, float]:
        found = measure_goodput(iter(self.events), iter(self.rows), "teacher")
        assert found is not None
        return asdict(found)


def test_an_undisturbed_stage_is_start_steps_pauses_and_finish():
    clock = Clock()
    clock.event("stage_started")
    clock.start(start_s=5)
    clock.train(10)
    clock.pause("validation_s", 2)
    clock.pause("save_stall_s", 0.5)
    clock.train(10)
    clock.event("training_ended", step=20)
    clock.event("stage_done", 3)
    found = clock.goodput()
    assert found == pytest.approx(
        dict(useful=15, data_wait=5, start=5, validation=2, save=0.5, finish=3, lost=0, restart=0, other=0)
    )
    assert sum(found.values()) == pytest.approx(clock.now - 1000)


def test_what_came_after_the_last_checkpoint_of_a_lost_process_is_lost_work():
    clock = Clock()
    clock.event("stage_started")
    clock.start()
    clock.train(10)
    clock.pause("save_stall_s", 1)
    clock.train(6)
    clock.now += 4  # until the loss is noticed
    clock.lose(to_step=10)
    clock.now += 2
    clock.start(start_s=7)
    clock.train(10)
    clock.event("training_ended", step=20)
    clock.event("stage_done")
    found = clock.goodput()
    assert found == pytest.approx(
        dict(useful=15, data_wait=5, start=12, validation=0, save=1, finish=0, lost=10, restart=2, other=0)
    )


def test_a_loss_before_the_first_checkpoint_loses_all_of_the_attempt():
    clock = Clock()
    clock.event("stage_started")
    clock.start()
    clock.train(6)
    clock.lose(to_step=0)
    clock.start()
    clock.train(3)
    clock.event("training_ended", step=3)
    clock.event("stage_done")
    found = clock.goodput()
    assert found["lost"] == pytest.approx(6)
    assert found["other"] == pytest.approx(0)


def test_time_between_two_calls_of_chorus_is_nobodys():
    clock = Clock()
    clock.event("stage_started")
    clock.start()
    clock.train(4)
    clock.event("training_ended", step=4)
    clock.event("stage_stopped", 1)
    clock.event("stage_started", 3600)
    clock.start()
    clock.train(4)
    clock.event("training_ended", step=8)
    clock.event("stage_done", 1)
    found = clock.goodput()
    assert found == pytest.approx(
        dict(useful=6, data_wait=2, start=10, validation=0, save=0, finish=2, lost=0, restart=0, other=0)
    )


def test_a_killed_launcher_is_counted_up_to_its_last_row_that_was_kept():
    clock = Clock()
    clock.event("stage_started")
    clock.start()
    clock.train(8)
    clock.now += 500
    clock.event("stage_started")
    clock.start()
    clock.train(2)
    clock.event("training_ended", step=10)
    clock.event("stage_done")
    found = clock.goodput()
    assert found["useful"] + found["data_wait"] == pytest.approx(10)
    assert found["other"] == pytest.approx(0)
    assert sum(found.values()) == pytest.approx(20)


def test_steps_that_are_not_in_the_weights_are_lost_work():
    clock = Clock()
    clock.event("stage_started")
    clock.start()
    clock.train(20, data_wait=0.0)
    clock.events.insert(-1, {"event": "update_skipped", "stage": "teacher", "time": 1010, "step": 3})
    clock.events.insert(-1, {"event": "rolled_back", "stage": "teacher", "time": 1020, "step": 12, "to_step": 8})
    clock.event("training_ended", step=20)
    clock.event("stage_done")
    found = clock.goodput()
    assert found["lost"] == pytest.approx(1 + 4)
    assert found["useful"] == pytest.approx(15)


def test_a_stage_that_runs_is_counted_up_to_its_last_row():
    clock = Clock()
    clock.event("stage_started")
    clock.start()
    clock.train(3)
    assert clock.goodput()["useful"] == pytest.approx(2.25)
    assert sum(clock.goodput().values()) == pytest.approx(8)


def test_a_stage_that_has_not_started_has_none():
    assert measure_goodput([], [], "teacher") is None
