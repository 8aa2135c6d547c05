"""The pictures of the routers' loads say what the loads say."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from launcher.tracking.router_maps import COLUMNS, RouterMaps, paint

BLUE, WHITE, RED = (33, 102, 172), (247, 247, 247), (178, 24, 43)


def row(step: int, *loads: list[float]) -> dict:
    return {"step": step, **{f"experts/layer-{layer:02d}/load": load for layer, load in enumerate(loads)}}


def test_an_even_share_is_white_a_dead_expert_blue_and_twice_the_share_red():
    image = paint(np.array([[0.0, 1.0, 2.0, 4.0]]), height=3, width=2)
    assert image.shape == (3, 8, 3)
    assert [tuple(image[1, 2 * column].tolist()) for column in range(4)] == [BLUE, WHITE, RED, RED]


def test_layers_stand_below_each_other_and_experts_side_by_side():
    maps = RouterMaps()
    assert not maps.add(row(10, [0.5, 0.5], [0.0, 1.0]))
    assert maps.add({"step": 10, "validation/loss": 1.0})
    images = maps.images()
    assert set(images) == {"router/load", "router/layer-00/load", "router/layer-01/load"}
    cells = images["router/load"][::24, ::24]
    assert [[tuple(pixel) for pixel in line] for line in cells.tolist()] == [[WHITE, WHITE], [BLUE, RED]]


def test_time_runs_to_the_right_and_experts_downwards():
    maps = RouterMaps()
    for step, share in ((1, 0.5), (2, 0.0)):
        maps.add(row(step, [share, 1 - share]))
    cells = maps.images()["router/layer-00/load"][::12, ::2]
    assert [[tuple(pixel) for pixel in line] for line in cells.tolist()] == [[WHITE, BLUE], [WHITE, RED]]


def test_nothing_new_is_no_picture_and_a_row_that_was_read_before_counts_once():
    maps = RouterMaps([row(1, [0.5, 0.5]), row(2, [0.5, 0.5])])
    assert not maps.add({"step": 2, "validation/loss": 1.0})
    maps.add(row(2, [0.0, 1.0]))
    assert not maps.has_new_loads()
    maps.add(row(3, [0.0, 1.0]))
    assert maps.has_new_loads()
    assert maps.images()["router/layer-00/load"].shape[1] == 3 * 2
    assert not maps.has_new_loads()


@given(num_rows=st.integers(1, 5 * COLUMNS))
def test_the_picture_of_a_long_stage_stays_small_and_shows_all_of_it(num_rows):
    """sum(rows per column) == rows, columns <= COLUMNS"""
    maps = RouterMaps()
    for step in range(num_rows):
        maps.add(row(step, [0.5, 0.5]))
    history = maps._layers["layer-00"]
    columns = len(history._closed) * history._stride + len(history._open)
    assert columns == num_rows
    assert 1 <= history.columns().shape[1] <= COLUMNS
