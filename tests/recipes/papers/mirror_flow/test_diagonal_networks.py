from typing import Any

import numpy as np
import pytest
import torch

from hf_pdyn.sweep.outcome import CONFIRMED, INCONCLUSIVE, NO_EFFECT, OPPOSITE, Outcome
from papers._claims.options import Options
from papers.mirror_flow import diagonal_networks
from papers.mirror_flow.diagonal_networks import TRUTH, Problem, descend, product
from tests.recipes.papers.judging import UNEVEN, judged

Change = tuple[float, float, float]
AS_THE_PAPER = {"m": (1.0, 1.0), "m*w": (-1.0, -1.0), "m*w*z": (-1.0, 1.0)}
"""By network: how the log distance changes from 0.01 to 0.1, and on to 1."""
FIGURE_PARTS = 6


def row(
    c: dict[str, Any],
    changes: dict[str, tuple[float, float]] = AS_THE_PAPER,
    noise: Change = (0.0, 0.01, -0.01),
    off: dict[str, float] | None = None,
    **results: Any,
) -> dict[str, Any]:
    """Two points of a curve before the shutoff, and two after it. off: the last ratio at the shutoff, less x*'s."""
    if "draws" in c:
        return {"relevant": [[0.0] * 5] * c["draws"], "alive": [1] * c["draws"]} | results
    name, random = c["network"], noise[c["seed"]]
    ends = np.exp(np.cumsum([0.0, *changes[name]]) * (1 + random))
    shift = {"m": 0.0, "m*w": 1.0, "m*w*z": -0.8} | (off or {})
    end = {"m": 2.0, "m*w": 0.0, "m*w*z": shift["m*w*z"]}[name]
    ratio = [TRUTH + shift[name] + random] * 2 + [TRUTH + end + random] * 2
    return {
        "steps": [0, 10, 10, 20],
        "distance": [ends.tolist()] * 4,
        "ratio": [[value] * 3 for value in ratio],
        "first": [1.0, 1.0, 0.0],
        "stuck": [0, 0, 3],
        "from_fit": [0.5, 0.5, 1e-9],
        "from_least": [1e-4, 1e-3],
        "from_printed": [0.5, 0.1],
        "from_small_start": [1e-4, 1e-3],
    } | results


@pytest.mark.parametrize(
    ("changes", "noise", "expected"),
    [
        (AS_THE_PAPER, (0.0, 0.01, -0.01), CONFIRMED),
        (AS_THE_PAPER | {"m*w": (1.0, 1.0)}, (0.0, 0.01, -0.01), OPPOSITE),
        (AS_THE_PAPER | {"m": (-1.0, -1.0)}, (0.0, 0.01, -0.01), OPPOSITE),
        (AS_THE_PAPER | {"m*w*z": (-1.0, -1.0)}, (0.0, 0.01, -0.01), OPPOSITE),
        (AS_THE_PAPER | {"m*w": (0.0, 0.0)}, (0.0, 0.01, -0.01), NO_EFFECT),
        (AS_THE_PAPER, UNEVEN, INCONCLUSIVE),
    ],
)
def test_rule(options: Options, changes: dict[str, tuple[float, float]], noise: Change, expected: Outcome) -> None:
    found = judged(diagonal_networks, options, lambda c: row(c, changes, noise), draw=True)
    assert found.verdict is expected
    assert (found.parts["m*w: more decay ends nearer"].verdict is CONFIRMED) == (
        changes["m*w"][0] < 0 and expected is not INCONCLUSIVE
    )


@pytest.mark.parametrize(
    ("off", "part", "expected"),
    [
        ({"m": 4.0}, "m, decay 1: the ratio rises after the shutoff", OPPOSITE),
        ({"m": 2.0}, "m, decay 1: the ratio rises after the shutoff", NO_EFFECT),
        ({"m*w": 0.0}, "m*w, decay 1: the ratio is right only after it", NO_EFFECT),
        ({"m*w": -1.0}, "m*w, decay 1: the ratio is right only after it", CONFIRMED),
    ],
)
def test_ratios(options: Options, off: dict[str, float], part: str, expected: Outcome) -> None:
    found = judged(diagonal_networks, options, lambda c: row(c, off=off))
    assert found.parts[part].verdict is expected
    assert found.verdict is (CONFIRMED if expected is CONFIRMED else expected)


def test_a_ratio_that_moves_does_not_stay(options: Options) -> None:
    def result(c: dict[str, Any]) -> dict[str, Any]:
        found = row(c)
        if c["network"] == "m*w*z" and "ratio" in found:
            found["ratio"][-1] = [value + 0.5 for value in found["ratio"][-1]]
        return found

    found = judged(diagonal_networks, options, result)
    assert found.parts["m*w*z, decay 1: the ratio stays"].verdict is OPPOSITE and found.verdict is OPPOSITE


@pytest.mark.parametrize(
    ("results", "part", "expected"),
    [
        ({"stuck": [0, 0, 0]}, "m*w*z, decay 1: not stuck at 0", CONFIRMED),
        ({"stuck": [0, 0, 3]}, "m*w*z, decay 1: not stuck at 0", OPPOSITE),
        ({"from_fit": [0, 0, 0.5]}, "m*w*z, decay 1: a fit on what is not stuck (ours)", OPPOSITE),
        ({"from_fit": [0, 0, 1e-9]}, "m*w*z, decay 1: a fit on what is not stuck (ours)", CONFIRMED),
        ({"from_least": [1e-3, 1e-3]}, "m*w ends where R_a is least (Theorem 3.2, corrected)", CONFIRMED),
        ({"from_least": [1e-3, 0.2]}, "m*w ends where R_a is least (Theorem 3.2, corrected)", OPPOSITE),
        ({"from_printed": [1e-3, 1e-3]}, "m*w ends where R_a is least, Eq. 8 as printed", CONFIRMED),
        ({"from_small_start": [0.2, 0.2]}, "m*w ends where a small start ends without decay (ours)", OPPOSITE),
    ],
)
def test_parts_beside_the_figures(options: Options, results: dict[str, Any], part: str, expected: Outcome) -> None:
    """The verdict does not hang on them."""
    found = judged(diagonal_networks, options, lambda c: row(c) if "draws" in c else row(c, **results))
    assert found.parts[part].verdict is expected and found.verdict is CONFIRMED


@pytest.mark.parametrize(
    ("start", "decay", "value", "expected"),
    [
        ("m = 0", 1.0, 1.62, CONFIRMED),
        ("m = 0", 1.0, 1.64, NO_EFFECT),
        ("m = 1", 1.0, 1.58, NO_EFFECT),
        ("m = 0", 2.0, 1.58, NO_EFFECT),
    ],
)
def test_one_draw_from_the_paper_s_start_is_enough(
    options: Options, start: str, decay: float, value: float, expected: Outcome
) -> None:
    def result(c: dict[str, Any]) -> dict[str, Any]:
        found = row(c)
        if c.get("start") == start and c["decay"] == decay and c["seed"] == 1:
            found["relevant"] = [[value, 0, 0, 0, 0], *found["relevant"][1:]]
        return found

    assert judged(diagonal_networks, options, result).parts["the value 1.58"].verdict is expected


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("draws", [(), (2,)])
def test_steps_are_those_of_sgd_with_weight_decay(count: int, draws: tuple[int, ...]) -> None:
    problem = Problem.of(torch.Generator().manual_seed(0), *draws)
    start = [torch.full((2, 100), float(i > 0), dtype=torch.float64) for i in range(count)]
    *_, (last, found) = descend(start, problem, 0.5, 1e-2, 20)
    factors = [factor.clone().requires_grad_() for factor in start]
    sgd = torch.optim.SGD(factors, lr=1e-2, weight_decay=0.5)
    for _ in range(20):
        sgd.zero_grad()
        residual = torch.einsum("...dn,...n->...d", problem.Z, product(factors)) - problem.y
        residual.square().mean(-1).sum().backward()
        sgd.step()
    assert last == 20
    torch.testing.assert_close(torch.stack(found), torch.stack([factor.detach() for factor in factors]))


def test_a_single_factor_has_an_l1_penalty() -> None:
    """From 0, a step of the loss's gradient; then one with the penalty's sign."""
    problem = Problem.of(torch.Generator().manual_seed(0))
    start = [torch.zeros(1, 100, dtype=torch.float64)]
    steps = dict(descend(start, problem, 0.3, 1e-2, 2))
    gradient = [2 / 40 * problem.Z.mT @ (problem.Z @ x - problem.y) for x in (steps[0][0][0], steps[1][0][0])]
    torch.testing.assert_close(steps[1][0][0], -1e-2 * gradient[0])
    torch.testing.assert_close(steps[2][0][0], steps[1][0][0] - 1e-2 * (gradient[1] + 0.3 * steps[1][0][0].sign()))


@pytest.mark.parametrize("network", diagonal_networks.FACTORS)
def test_a_short_run(options: Options, network: str) -> None:
    c = next(c for c in diagonal_networks.configurations(options) if c["network"] == network)
    found = diagonal_networks.run({**c, "steps": 400, "lr": 5e-3}, options)
    place = found["steps"].index(400)
    assert found["steps"][-1] == 800 and found["steps"][place + 1] == 400  # the same, without decay from here
    distance = np.array(found["distance"])
    assert distance.shape == (len(found["steps"]), 3)
    assert distance[0] == pytest.approx(TRUTH) and (distance[-1] < distance[0]).any()
    if network == "m*w":  # far from its end, yet already nearer to what holds; and as the start of the same R_a
        assert np.less(found["from_least"], found["from_printed"]).all()
        assert max(found["from_small_start"]) < 0.05


def test_short_draws(options: Options) -> None:
    c = next(c for c in diagonal_networks.configurations(options) if c.get("start") == "m = 0")
    found = diagonal_networks.run({**c, "draws": 3, "steps": 1500}, options)
    assert np.shape(found["relevant"]) == (3, 5) and min(found["alive"]) >= 0


def test_the_fit_is_on_what_is_alive() -> None:
    problem = Problem.of(torch.Generator().manual_seed(1))
    alive = torch.zeros(100, dtype=torch.bool)
    assert not diagonal_networks._fit(problem, alive).any()
    alive[:5] = True
    torch.testing.assert_close(diagonal_networks._fit(problem, alive), diagonal_networks.truth())
    alive[0] = False
    x = diagonal_networks._fit(problem, alive)
    assert x[0] == 0 and float((problem.Z[:, alive].mT @ (problem.Z @ x - problem.y)).abs().max()) < 1e-12
