"""Which events of a run raise an alert, and what it says."""

from launcher.tracking.alerts import make_alert, unreported_restarts


def event(name: str, stage: str = "teacher", **details) -> dict:
    return {"event": name, "stage": stage, **details}


def test_a_restart_is_told_once_with_its_reason_by_the_attempt_that_follows_it():
    first = [
        event("training_started", step=0),
        event("process_lost", rank=1, reason="rank 1 was killed.", checkpoint_step=40),
        event("restart", restart=1, from_step=40),
        event("restart", stage="student", restart=3, from_step=7),
    ]
    (restart,) = unreported_restarts(first, "teacher")
    alert = make_alert(restart)
    assert alert is not None
    assert (alert.title, alert.text) == ("teacher was restarted", "Restart 1, from step 40. rank 1 was killed.")
    assert list(unreported_restarts([*first, event("training_started", step=40)], "teacher")) == []


def test_restarts_that_never_came_to_train_are_told_by_the_one_that_does():
    lost = [event("process_lost", reason="no port"), event("restart", restart=1, from_step=0)]
    again = [event("process_lost", reason="no memory"), event("restart", restart=2, from_step=0)]
    reasons = [restart["reason"] for restart in unreported_restarts([*lost, *again], "teacher")]
    assert reasons == ["no port.", "no memory."]


def test_a_left_out_update_names_a_few_of_its_utterances():
    keys = [f"u{number}" for number in range(9)]
    alert = make_alert(event("update_skipped", step=7, reason="the gradient is not finite", utterances=keys))
    assert alert is not None
    assert alert.text == "Step 7: the gradient is not finite: u0, u1, u2, u3, u4 and 4 more."


def test_every_kind_of_trouble_has_an_alert_and_ordinary_events_have_none():
    trouble = [
        event("loss_spike", step=3, loss=9.0, usual=2.0),
        event("rolled_back", step=9, to_step=4),
        event("routing_collapsed", step=9, layer="layer-03", reason="expert 2 takes 95% of the choices", load=[]),
    ]
    assert all(make_alert(one) for one in trouble)
    assert "layer-03" in make_alert(trouble[2]).text
    for name in ("training_started", "training_ended", "stage_done", "routing_recovered", "process_lost"):
        assert make_alert(event(name, step=1, layer="layer-00")) is None
