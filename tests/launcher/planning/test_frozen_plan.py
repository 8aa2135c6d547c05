"""`chorus plan` of a stage with frozen parts: they are counted, and need weights alone."""

import pytest

from launcher.commands.plan import _sizes_table
from launcher.planning.machine import machine_of
from launcher.planning.table import plan_table
from launcher.recipe import load_recipe
from launcher.run_folder import RunFolder

FREEZE = "stages.teacher.freeze=['encoder', 'decoder.embedding']"


def planned(tmp_path, *overrides):
    recipe = load_recipe("mini", overrides)
    return plan_table(recipe, RunFolder(tmp_path / "run"), [2], machine_of(recipe.cluster, [2]))["stages"]


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plans")
    return planned(folder), planned(folder, FREEZE)


def test_frozen_parts_are_counted_and_shown(plans):
    plain, frozen = plans
    assert plain["teacher"]["frozen_parameters"] == 0
    stage = frozen["teacher"]
    assert stage["encoder_parameters"] < stage["frozen_parameters"] < stage["parameters"]
    assert stage["parameters"] == plain["teacher"]["parameters"]
    for plan, is_shown in ((plain, False), (frozen, True)):
        table = _sizes_table([{"name": name, **row} for name, row in plan.items()])
        assert ("  frozen" in table.columns[0].cells) == is_shown


def test_frozen_parts_have_weights_and_nothing_beside_them_under_every_choice(plans):
    plain, frozen = (plan["teacher"] for plan in plans)
    share = 1 - frozen["frozen_parameters"] / frozen["parameters"]
    for before, after in zip(plain["memory_choices"], frozen["memory_choices"], strict=True):
        # Up to the padding of partitions and of what is kept gathered.
        assert after["memory_bytes"]["weights"] == pytest.approx(before["memory_bytes"]["weights"], rel=1e-3)
        assert after["memory_bytes"]["moments"] == pytest.approx(share * before["memory_bytes"]["moments"], rel=1e-2)
        assert after["memory_bytes"]["total"] < before["memory_bytes"]["total"]
    assert frozen["checkpoint_bytes"] < plain["checkpoint_bytes"]
    assert sum(frozen["traffic_bytes"].values()) <= sum(plain["traffic_bytes"].values())
