"""The points of a sweep: grids, draws and their names."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.files import is_file_name
from launcher.errors import ConfigError
from launcher.sweep.points import make_points, name_points, read_axis


def points(*axes, num_random=None, seed=1):
    return make_points([read_axis(axis) for axis in axes], num_random, seed)


def test_a_grid_has_every_combination_once_the_last_setting_changing_fastest():
    assert points("a.x=1,2", "b.y=u,v,w") == [
        {"a.x": x, "b.y": y} for x, y in itertools.product(("1", "2"), ("u", "v", "w"))
    ]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a=0.1, 0.3 ,1", ("0.1", "0.3", "1")),
        ("a=[1, 2],[3]", ("[1, 2]", "[3]")),
        ("a={kind: char},{kind: bpe, pieces: 50}", ("{kind: char}", "{kind: bpe, pieces: 50}")),
        ("a='x,y',z", ("'x,y'", "z")),
        ("a=null,true", ("null", "true")),
        ("a=b=c,d", ("b=c", "d")),
    ],
)
def test_values_are_separated_by_the_commas_outside_of_brackets_and_quotes(text, values):
    assert read_axis(text).values == values


def test_a_draw_is_the_same_again_and_a_longer_one_begins_with_a_shorter_one():
    axes = ("rate=log(1e-4,1e-2)", "width=int(1,8)", "share=uniform(0,1)", "kind=a,b")
    long = points(*axes, num_random=40)
    assert points(*axes, num_random=10) == long[:10]
    assert points(*axes, num_random=10, seed=2) != long[:10]
    assert {point["kind"] for point in long} == {"a", "b"}
    for point in long:
        assert 1e-4 <= float(point["rate"]) <= 1e-2
        assert 1 <= int(point["width"]) <= 8
    # Half of the logarithms lie in each half, not nearly all of the numbers in the upper one.
    lower = sum(math.log10(float(point["rate"])) < -3 for point in long)
    assert 10 <= lower <= 30


def test_a_draw_from_a_grid_has_no_point_twice():
    axes = ("a=1,2,3,4", "b=1,2,3")
    drawn = points(*axes, num_random=12)
    assert sorted(map(str, drawn)) == sorted(map(str, points(*axes)))
    assert points(*axes, num_random=5) == drawn[:5]


@pytest.mark.parametrize(
    ("axes", "num_random", "message"),
    [
        (["a"], None, "KEY=A,B,C"),
        (["=1,2"], None, "KEY=A,B,C"),
        (["a="], None, "KEY=A,B,C"),
        (["a=1,,2"], None, "empty value"),
        (["a=1,1"], None, "twice"),
        (["a=1,2", "a=3"], None, "twice"),
        (["a=log(0,1)"], 3, "above 0"),
        (["a=uniform(2,1)"], 3, "lower number first"),
        (["a=int(1,2.5)"], 3, "whole"),
        (["a=uniform(0,inf)"], 3, "lower number first"),
        (["a=uniform(x,1)"], 3, "two numbers"),
        (["a=uniform(0,1)"], None, "--random N"),
        (["a=1,2"], 3, "2 points"),
        (["a=1,2"], 0, "--random is 0"),
        (["a=" + ",".join(map(str, range(40))), "b=" + ",".join(map(str, range(40)))], None, "1600 points"),
    ],
)
def test_what_cannot_be_swept_is_told_in_a_sentence(axes, num_random, message):
    with pytest.raises(ConfigError, match=message):
        points(*axes, num_random=num_random)


def test_names_say_as_much_of_a_setting_as_tells_it_from_the_others():
    assert name_points(points("stages.student.distill.hidden.weight=0.1,1")) == ["weight-0.1", "weight-1"]
    names = name_points(points("stages.a.distill.weight=1", "stages.a.other.weight=2", "seed=3"))
    assert names == ["distill-weight-1_other-weight-2_seed-3"]


@settings(max_examples=60)
@given(st.lists(st.text(min_size=1, max_size=100), min_size=1, max_size=8, unique=True))
def test_every_point_has_a_name_of_its_own_that_is_one_of_a_folder(values):
    names = name_points([{"a.b": value} for value in values])
    assert len(set(names)) == len(values)
    assert all(map(is_file_name, names))
