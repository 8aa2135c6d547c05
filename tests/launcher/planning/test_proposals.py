"""What `chorus plan` proposes and warns of: tables over numbers, and recipes that follow the proposal."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from launcher.cli import main as chorus
from launcher.planning.proposals import Choice, StageNumbers, propose, warnings
from launcher.recipe import load_recipe

GIB = 1 << 30


def choice(zero: int, size: int, needed_gib: float, sending_s: float) -> Choice:
    return Choice(f"zero{zero}", zero, size, round(needed_gib * GIB), sending_s)


# Four processes, eight experts: spreading them saves memory, and sends more.
CHOICES = (
    choice(0, 1, 16, 0.2),
    choice(1, 1, 10, 0.3),
    choice(1, 2, 8, 0.4),
    choice(2, 1, 7, 0.6),
    choice(2, 2, 6, 0.7),
    choice(3, 1, 4, 0.9),
    choice(3, 2, 3, 1.0),
)
STAGE = StageNumbers(
    name="student",
    chosen=CHOICES[3],
    choices=CHOICES,
    available_bytes=20 * GIB,
    activations_known=True,
    compute_s=10.0,
    experts=8,
    frames_per_expert=500,
    accumulation=2,
    steps_of_audio=100.0,
)


@pytest.mark.parametrize(
    ("available_gib", "deepspeed", "size", "fits"),
    [
        (None, "zero1", 1, True),
        (20, "zero1", 1, True),
        (9, "zero1", 2, True),  # a tenth stays free: 8 of 9 does
        (8, "zero2", 1, True),
        (6.8, "zero2", 2, True),
        (5, "zero3", 1, True),
        (3.5, "zero3", 2, True),
        (2, "zero3", 2, False),
    ],
)
def test_the_choice_that_sends_least_of_those_that_fit_is_proposed(available_gib, deepspeed, size, fits):
    available = None if available_gib is None else round(available_gib * GIB)
    proposed = propose([replace(STAGE, available_bytes=available)])["student"]
    assert (proposed.deepspeed, proposed.expert_parallel, proposed.fits) == (deepspeed, size, fits)


def test_zero_0_is_proposed_only_where_nothing_else_fits():
    choices = (choice(0, 1, 4, 0.0), choice(1, 1, 6, 0.0))
    alone = replace(STAGE, chosen=choices[1], choices=choices, experts=0)
    assert propose([alone])["student"].deepspeed == "zero1"
    assert propose([replace(alone, available_bytes=5 * GIB)])["student"].deepspeed == "zero0"


def test_of_choices_that_send_equally_much_the_recipes_own_is_kept():
    choices = (choice(1, 1, 6, 0.1), choice(2, 1, 7, 0.1), choice(3, 1, 5, 0.2))
    for chosen in choices[:2]:
        stage = replace(STAGE, chosen=chosen, choices=choices)
        assert propose([stage])["student"].deepspeed == chosen.deepspeed


def test_stages_with_experts_share_one_size_and_others_have_none():
    tight = replace(STAGE, name="large", available_bytes=round(6.8 * GIB))
    unspread = tuple(choice for choice in CHOICES if choice.expert_parallel == 1)
    dense = replace(STAGE, name="teacher", experts=0, choices=unspread)
    proposals = propose([dense, STAGE, tight])
    sizes = {name: proposal.expert_parallel for name, proposal in proposals.items()}
    assert sizes == {"teacher": 1, "student": 2, "large": 2}
    assert proposals["teacher"].expert_parallel_reason == "the stage has no experts"


@pytest.mark.parametrize(
    ("changes", "hosts", "kind", "words"),
    [
        ({"available_bytes": 5 * GIB}, (4,), "does_not_fit", "zero3 with expert parallelism 1 would fit: 4.00 GiB"),
        ({"available_bytes": 2 * GIB}, (4,), "does_not_fit", "take more processes"),
        ({"available_bytes": 2 * GIB, "activations_known": False}, (4,), "does_not_fit", "which are unknown"),
        ({"chosen": CHOICES[4]}, (1, 3), "exchange_crosses_hosts", "Expert parallelism 1 stays within a host"),
        ({"compute_s": 0.9}, (4,), "communication", "40% of it"),
        ({"steps_of_audio": 0.25}, (4,), "lanes_stay_empty", "fills 25% of the lanes"),
        (
            {"compute_s": 0.004, "chosen": replace(CHOICES[3], communication_s=0.0)},
            (4,),
            "micro_batch_too_small",
            "computes for about 2 ms",
        ),
        ({"frames_per_expert": 12.0}, (4,), "too_few_frames_per_expert", "about 12 frames"),
    ],
)
def test_what_would_disappoint_is_warned_of(changes, hosts, kind, words):
    (warning,) = warnings(replace(STAGE, **changes), hosts)
    assert (warning.stage, warning.kind) == ("student", kind)
    assert words in warning.text


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"available_bytes": None},
        {"steps_of_audio": None},
        {"chosen": CHOICES[4]},
        {"experts": 0, "frames_per_expert": 0},
    ],
)
def test_a_stage_without_fault_has_no_warning(changes):
    assert warnings(replace(STAGE, **changes), (2, 2)) == []


def planned(capsys, *arguments: str) -> dict:
    """What `chorus plan` prints for programs."""
    assert chorus(["plan", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("deepspeed", ["zero0", "zero3"])
def test_a_recipe_that_follows_the_proposal_is_accepted_and_proposed_nothing_more(
    capsys, tmp_path: Path, processes, deepspeed
):
    values = yaml.safe_load(Path("launcher/recipes/mini.yaml").read_text())
    values |= {"batches": {"lanes": 4, "seconds": 12}}
    values["cluster"] = {"processes": processes, "deepspeed": deepspeed}
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(values))
    run = ["--run-dir", str(tmp_path / "run")]
    proposal = planned(capsys, str(file), *run)["proposal"]
    settings = proposal["settings"]

    # ConfigError if the checks refused it.
    recipe = load_recipe(file, settings)
    for stage in recipe.training_stages():
        proposed = proposal["stages"][stage.name]
        assert recipe.deepspeed_of(stage).stem == proposed["deepspeed"]
        assert recipe.expert_parallel_of(stage) == proposed["expert_parallel"]

    overrides = []
    for setting in settings:
        overrides += ["--set", setting]
    assert planned(capsys, str(file), *run, *overrides)["proposal"]["settings"] == []


def test_a_plan_shows_its_proposal_and_its_warnings(capsys, tmp_path):
    run = ["--run-dir", str(tmp_path / "run")]
    small = ["--set", "batches={lanes: 2, seconds: 1, max_utterance_s: 1}"]
    assert chorus(["plan", "mini", *run, *small]) == 0
    shown = capsys.readouterr().out
    assert "Proposed:\n- teacher: zero" in shown
    assert "Warning: teacher: A step would send for" in shown


def test_an_expert_parallel_size_without_experts_is_warned_of(capsys, tmp_path):
    no_experts = ["--set", "stages.student.model.encoder.experts=null"]
    report = planned(capsys, "mini", "--run-dir", str(tmp_path / "run"), *no_experts)
    kinds = [warning["kind"] for warning in report["warnings"] if not warning["stage"]]
    assert kinds == ["expert_parallel_unused"]


def test_a_measured_rate_between_hosts_takes_the_place_of_the_assumed_one(capsys, tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("one slots=1\ntwo slots=1\n")
    arguments = ["mini", "--run-dir", str(tmp_path / "run"), "--hostfile", str(hosts)]
    assumed = planned(capsys, *arguments)
    measured = planned(capsys, *arguments, "--set", "cluster.exchange_bytes_per_s=1.25e8")
    for before, after in zip(assumed["stages"], measured["stages"], strict=True):
        if "communication_s" in before:
            assert after["communication_s"] == pytest.approx(10 * before["communication_s"])
    assert "exchange_crosses_hosts" in {warning["kind"] for warning in measured["warnings"]}
    assert measured["available_bytes"] is None
