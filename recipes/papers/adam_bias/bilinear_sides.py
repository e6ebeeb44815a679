"""Claim 3: beta, rho and the learning rate choose the side of the valley (IBA section 5, Figs. 2 and 3).

    python recipes/claim.py bilinear_sides

Adam comes down the bilinear model E = (y - x t1 t2)^2 / 2 with gradients far above eps, so its bias term should be
(lr/2) (C_beta - C_rho) times the gradient of ||grad E||_1: a larger beta moves paths to where that norm is smaller, a
larger rho to where it is larger, a larger learning rate to the former where beta > rho and to the latter where rho >
beta. Norms are compared at the same loss: where Adam first meets the valley, and on the way there, with the modified
flow. In the valley, where gradients vanish, that flow has an equilibrium which Adam does not have. Quick and full are
the same: this is arithmetic, in float64.

The paper's: the model, p = 1/2, and what is swept. Ours: its constants, starts, all values of the sweeps, the
comparison with sign descent and with the flow.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_pdyn.sweep import statistics
from hf_pdyn.sweep.outcome import ALL_RULE, all_of
from hf_pdyn.theory.flows import trajectory
from hf_pdyn.theory.modified_flow import memory_coefficient, modified_flow
from papers._claims import figures
from papers._claims.claim import Claim
from papers._claims.options import Options
from papers._claims.rows import Configuration, Result, Row, chosen
from papers._claims.verdict import Part, Verdict
from papers.adam_bias import _valley

P, EPS, LR = 0.5, 1e-6, 2e-3
SWEEPS: dict[str, dict[float, dict[str, Any]]] = {
    "beta": {beta: {"betas": [beta, 0.95], "lr": LR} for beta in (0.0, 0.5, 0.8, 0.9, 0.95)},
    "rho": {rho: {"betas": [0.6, rho], "lr": LR} for rho in (0.5, 0.8, 0.9, 0.95, 0.97)},
    "lr, beta > rho": {lr: {"betas": [0.9, 0.5], "lr": lr} for lr in (0.001, 0.002, 0.004)},
    "lr, rho > beta": {lr: {"betas": [0.5, 0.95], "lr": lr} for lr in (0.001, 0.002, 0.004)},
}
DIRECTIONS = {"beta": -1, "rho": +1, "lr, beta > rho": -1, "lr, rho > beta": +1}
"""What happens to the norm as the sweep's value rises, by the paper."""
OF_FLOW, OF_ADAM = (10.0, 8.0, 6.0, 4.0), (10.0, 8.0, 6.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.0)
"""Residuals at which norms are compared; the valley's is 0."""
BOUND = 1e-4
TOLERANCE = 0.25
RULE = f"""Of the log of ||grad E||_1 over that of sign descent at the same loss, in the limit where Adam first meets
the valley: it falls with beta, rises with rho, falls with the learning rate where beta > rho, and rises with it where
rho > beta. Each is a trend, over (lr/2) (C_beta - C_rho), in which theory has it linear. Bound: {BOUND:g} of that
log. {ALL_RULE} {statistics.TREND_RULE} {statistics.EFFECT_RULE} Part: at residual {OF_FLOW[-1]:g}, of each sweep,
Adam's trend over that of the modified flow (finite n), of each seed, agrees with 1 within {TOLERANCE:g}.
{statistics.AGREEMENT_RULE}"""


def configurations(given: Options) -> list[Configuration]:
    """Every setting of every sweep."""
    return [
        {"sweep": sweep, "value": value, **setting, "p": P, "eps": EPS, "of_adam": OF_ADAM, "of_flow": OF_FLOW}
        | {"seed": seed}
        for sweep, settings in SWEEPS.items()
        for value, setting in settings.items()
        for seed in range(given.seeds)
    ]


def run(configuration: Configuration, _: Options) -> Result:
    """The log of ||grad E||_1 over that of sign descent, at every residual: of Adam, and of the modified flow."""
    start, lr = _valley.start(configuration["seed"]), configuration["lr"]
    options: dict[str, Any] = {name: configuration[name] for name in ("betas", "p", "eps")}
    enough = round(2 * float(start.max()) / lr)  # sign descent moves each parameter by lr
    flow = trajectory(
        lambda n, theta: modified_flow(_valley.loss, theta, lr=lr, steps_done=n, **options), start, lrs=[lr] * enough
    )
    paths = {"of_adam": _valley.steps(start, lr=lr, **options), "of_flow": flow}
    result = {}
    for of, path in paths.items():
        residuals = configuration[of]
        found, expected = _valley.norms(path, residuals), _valley.norms_of_sign_descent(start, residuals)
        result[of] = [norm - without for norm, without in zip(found, expected, strict=True)]
    return result


def strengths(sweep: str) -> list[float]:
    """(lr/2) (C_beta - C_rho), the factor of the bias term after many steps, by value."""
    coefficients = [[memory_coefficient(b) for b in setting["betas"]] for setting in SWEEPS[sweep].values()]
    lrs = [setting["lr"] for setting in SWEEPS[sweep].values()]
    return [float(lr / 2 * (beta - rho)) for lr, (beta, rho) in zip(lrs, coefficients, strict=True)]


def norms(rows: Sequence[Row], sweep: str, residual: float, of: str = "of_adam") -> np.ndarray:
    """(values, seeds)."""
    index = (OF_ADAM if of == "of_adam" else OF_FLOW).index(residual)
    by_value = [[row["result"][of][index] for row in chosen(rows, sweep=sweep, value=value)] for value in SWEEPS[sweep]]
    return np.array(by_value, float)


def agreement_with_flow(rows: Sequence[Row], sweep: str) -> statistics.Mean:
    """Adam's trend over that of the modified flow, at the last residual before the valley."""
    adam, flow = (
        statistics.slopes(strengths(sweep), norms(rows, sweep, OF_FLOW[-1], of)) for of in ("of_adam", "of_flow")
    )
    return statistics.mean_of(adam / flow)


def judge(rows: Sequence[Row], given: Options) -> Verdict:
    """By RULE."""
    trends = {sweep: statistics.trend(strengths(sweep), norms(rows, sweep, 0.0)) for sweep in SWEEPS}
    outcomes = {sweep: statistics.effect(trends[sweep], BOUND, direction=DIRECTIONS[sweep]) for sweep in SWEEPS}
    ratios = {sweep: agreement_with_flow(rows, sweep) for sweep in SWEEPS}
    told = "; ".join(
        f"{_range(sweep)}: {1000 * trend.mean:+.2f} ± {1000 * trend.spread:.2f} ‰ ({outcomes[sweep]})"
        for sweep, trend in trends.items()
    )
    return Verdict(
        number=3,
        claim="In the bilinear model, beta, rho and the learning rate choose the side of the valley",
        paper="a larger beta moves Adam to a smaller ||grad E||_1, a larger rho to a larger one; a larger learning "
        "rate to a smaller one if beta > rho, else to a larger one (Figs. 2, 3)",
        measured=f"||grad E||_1 at the valley, along the fitted line: {told}",
        verdict=all_of(outcomes.values()),
        parts={
            "the modified flow has the size": Part(
                all_of(statistics.agreement(ratio, 1, TOLERANCE) for ratio in ratios.values()),
                f"Adam's trend over the flow's at residual {OF_FLOW[-1]:g}: "
                f"{', '.join(f'{sweep} {ratio}' for sweep, ratio in ratios.items())}",
            )
        },
        figures={
            sweep: {
                f"{value:g}": str(statistics.mean_of(norm))
                for value, norm in zip(SWEEPS[sweep], norms(rows, sweep, 0.0), strict=True)
            }
            | {"trend": str(trends[sweep])}
            for sweep in SWEEPS
        },
    )


def _range(sweep: str) -> str:
    values = list(SWEEPS[sweep])
    name, _, which = sweep.partition(", ")
    return f"{name} {values[0]:g} to {values[-1]:g}{which and f' at {which}'}"


def draw(rows: Sequence[Row], given: Options) -> None:
    """Paths of the first seed, a panel for each sweep; beside them all seeds.

    A path is drawn as its norm over that of sign descent at the same loss: the plane of the paper's figures, turned and
    stretched until paths are apart.
    """
    with figures.panels(2, 3, height=2.6) as (figure, grid):
        for axes, sweep in zip(grid[:, :2].flat, SWEEPS, strict=True):
            axes.sharey(grid[0, 0])
            _draw_paths(axes, rows, sweep)
        for axes in grid[1, :2]:
            axes.set_xlabel("residual, 0 in the valley")
        for axes in grid[:, 0]:
            axes.set_ylabel("norm over sign descent's, ‰")
        for i, sweep in enumerate(SWEEPS):
            style: dict[str, Any] = {"color": f"C{i}", "markersize": 3, "label": f"all seeds, {_symbols(sweep)}"}
            ends = 1000 * norms(rows, sweep, 0.0)
            grid[0, 2].errorbar(1000 * np.array(strengths(sweep)), ends.mean(1), ends.std(1, ddof=1), fmt="o", **style)
            flow, adam = (1000 * norms(rows, sweep, OF_FLOW[-1], of).flatten() for of in ("of_flow", "of_adam"))
            grid[1, 2].plot(flow, adam, "o", **style)
        grid[0, 2].set(title="in the valley", xlabel=r"lr/2 ($C_\beta - C_\rho$) x 1000")
        grid[1, 2].axline((0, 0), slope=1, color="0.7", linewidth=1)
        grid[1, 2].set(title=f"at residual {OF_FLOW[-1]:g}", xlabel="modified flow, ‰", ylabel="Adam, ‰")
        figures.legend(figure, columns=3)
        figures.save(figure, given.directory / "figure.png")


def _draw_paths(axes: Any, rows: Sequence[Row], sweep: str) -> None:
    """The first and the last value stand at their lines; colours go in order."""
    values = list(SWEEPS[sweep])
    for value, colour in zip(values, figures.colours(len(values)), strict=True):
        result = chosen(rows, sweep=sweep, value=value)[0]["result"]
        adam, flow = (1000 * np.array(result[of], float) for of in ("of_adam", "of_flow"))
        labels = ("Adam", "its modified flow") if value == values[0] else (None, None)
        axes.plot(OF_ADAM, adam, color=colour, label=labels[0])
        axes.plot(OF_FLOW, flow, "o", color=colour, markersize=3.5, fillstyle="none", label=labels[1])
        if value in (values[0], values[-1]):
            axes.annotate(f" {value:g}", (OF_ADAM[-1], adam[-1]), fontsize=8, va="center", color=colour)
    axes.axhline(0, color="0.7", linewidth=1)
    axes.set(title=f"first seed, by {_symbols(sweep)}", xlim=(OF_ADAM[0] + 0.5, -1.9))


def _symbols(sweep: str) -> str:
    return sweep.replace("beta", r"$\beta$").replace("rho", r"$\rho$")


CLAIM = Claim(__name__, __doc__, RULE, configurations, run, judge, draw)
