import io

import pytest
from rich.console import Console

from _common.parts import Signal, mean_signals, print_signals, signals_of


def row(step: int, layer: str, name: str, value: float, part: str = "weight") -> dict[str, object]:
    return {"step": step, "layer": layer, "part": part, "name": name, "value": value}


ROWS = [
    row(1, "classifier", "grad_norm", 3.0),
    row(1, "classifier", "grad_norm", 4.0, "bias_like"),
    row(1, "classifier", "update_norm", 0.3),
    row(1, "classifier", "param_norm", 3.0),
    row(1, "vit.layers.0.attention.q_proj", "grad_norm", 6.0),
    row(1, "vit.layernorm", "grad_norm", 8.0, "bias_like"),
    row(1, "vit.layers.0.attention.q_proj", "update_norm", 0.2),
    row(1, "vit.layers.0.attention.q_proj", "param_norm", 10.0),
    row(1, "vit.layernorm", "one_norm", 1e9, "bias_like"),
]


def test_layers_add_up_in_squares_to_head_and_backbone() -> None:
    signals = signals_of(ROWS, ["classifier"])
    assert signals == {1: {"head": Signal(5.0, pytest.approx(0.1)), "backbone": Signal(10.0, pytest.approx(0.02))}}


def test_a_part_that_was_not_measured_is_missing() -> None:
    signals = signals_of([*ROWS, row(2, "classifier", "grad_norm", 1.0)], ["classifier"])
    assert signals[2] == {}
    assert mean_signals(signals.values())["head"].gradient_norm == 5.0
    assert mean_signals([{}]) == {}


def test_the_table_has_the_means_of_quarters() -> None:
    signals = {step: {"head": Signal(float(step), 0.5), "backbone": Signal(2.0, 0.25)} for step in range(1, 9)}
    console = Console(file=io.StringIO(), width=120)
    print_signals(console, signals)
    lines = [line for line in console.file.getvalue().splitlines() if " to " in line]
    assert [[cell.strip() for cell in line.split("│")[1:4]] for line in lines] == [
        ["1 to 2", "1.5", "2"],
        ["3 to 4", "3.5", "2"],
        ["5 to 6", "5.5", "2"],
        ["7 to 8", "7.5", "2"],
    ]
