"""What figures show, read back from them; and that they leave in the page's colour."""

import math

import pytest
import scipy.stats
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure as Plot

from svf_rl.evaluate.figures import COLOURS, INK, choices, curves, gate_map, mixtures, profile, sequence, svg


def grid(plot: Plot) -> list[list[float]]:
    """The numbers that a heat map shows."""
    return [[round(float(x), 6) for x in row] for row in plot.axes[0].images[0].get_array()]


def labels(plot: Plot) -> tuple[list[str], list[str]]:
    axes = plot.axes[0]
    return [t.get_text() for t in axes.get_yticklabels()], [t.get_text() for t in axes.get_xticklabels()]


def test_a_dispatchers_confusion_is_shares_of_prompts() -> None:
    cells = [
        {"row": "probe", "column": "math", "value": 1.0, "parts": {"math": 3, "base": 1}},
        {"row": "probe", "column": "code", "value": 1.0, "parts": {"code": 5}},
        {"row": "math", "column": "math", "value": 1.0, "parts": {"math": 4}},
    ]
    plot = choices(cells, "probe")
    assert labels(plot) == (["math", "code"], ["math", "base", "code"])
    assert grid(plot) == [[75, 25, 0], [0, 0, 100]]


def test_mixtures_stand_under_the_names_of_their_experts() -> None:
    first = {"env": "a", "seed": 0, "experts": ["x", "y"], "weights": [0.25, 0.75]}
    second = {"env": "a", "seed": 1, "experts": ["y", "x"], "weights": [[0.2, 0.4], [0.0, 1.0]]}  # per matrix [experts, matrices]
    plot = mixtures([first, second])
    assert labels(plot) == (["a, seed 0", "a, seed 1"], ["x", "y"])
    assert grid(plot) == [[0.25, 0.75], [0.5, 0.3]]


def test_gates_stand_by_text_layer_and_branch() -> None:
    plot = gate_map({"special": [[0.1, 0.9], [0.2, 0.8]], "general": [[0.7, 0.3], [1.0, 0.0]]})
    assert labels(plot) == (
        ["special, layer 0", "special, layer 1", "general, layer 0", "general, layer 1"],
        ["base", "specialist 1"],
    )
    assert grid(plot) == [[0.1, 0.9], [0.2, 0.8], [0.7, 0.3], [1.0, 0.0]]


def test_a_band_is_the_t_interval_over_seeds_within_what_is_possible() -> None:
    rewards = {0: [0.2, 0.4, 0.6], 1: [0.9, 1.0, 0.7]}
    runs = [[{"step": step, "reward": own[i]} for step, own in rewards.items()] for i in range(3)]
    axes = curves({"math, svf": runs}, "reward", "share", 1.0).axes[0]
    assert axes.get_lines()[0].get_ydata().tolist() == pytest.approx([sum(own) / 3 for own in rewards.values()])
    low, high = scipy.stats.ttest_1samp(rewards[0], 0).confidence_interval()
    edges = axes.collections[0].get_paths()[0].vertices
    assert sorted({round(y, 6) for x, y in edges if x == 0}) == [round(max(0.0, low), 6), round(high, 6)]
    assert max(y for _, y in edges) <= 1.0
    assert axes.get_legend().get_texts()[0].get_text() == "math, svf (3 seeds)"


def test_no_two_lines_look_alike_and_their_names_take_the_pages_colour() -> None:
    runs = {f"run {i}": [[{"step": 0, "reward": 0.5}, {"step": 1, "reward": 0.6}]] for i in range(2 * len(COLOURS))}
    plot = curves(runs, "reward", "share", 1.0)
    axes = plot.axes[0]
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.get_lines()}) == len(runs)
    assert {to_hex(text.get_color()) for text in plot.legends[0].get_texts()} == {INK}
    assert INK not in svg(plot)
    adapters = {f"way {i}": {"accuracy": [[0.1], [0.2]]} for i in range(len(COLOURS) + 1)}
    assert len(sequence({"tasks": ["a"], "adapters": adapters}).axes[0].get_lines()) == len(adapters)


def test_a_profile_is_the_root_mean_square_over_experts() -> None:
    experts = [
        {"model.layers.0.mlp.up_proj": [1.0, 1.2], "model.layers.1.mlp.up_proj": [1.0]},
        {"model.layers.0.mlp.up_proj": [1.4, 1.0]},
    ]
    plot = profile(experts)
    assert labels(plot) == (["up_proj"], ["layer 0", "layer 1"])
    assert grid(plot) == [[round(math.sqrt((0.04 + 0.16) / 4), 6), 0.0]]


def test_numbers_in_a_heat_map_stand_out() -> None:
    cells = [{"row": "probe", "column": c, "value": 1.0, "parts": {"a": n, "b": 10 - n}} for c, n in (("math", 0), ("code", 10))]
    plot = choices(cells, "probe")
    image = plot.axes[0].images[0]
    for text, value in zip(plot.axes[0].texts, (0, 100, 100, 0), strict=True):
        back, ink = (sum(to_rgba(c)[:3]) / 3 for c in (image.cmap(image.norm(value)), text.get_color()))
        assert abs(back - ink) > 0.4
