"""Claim 11 (ours): is what p does to a network more than what a learning rate does?

    python recipes/claim.py one_curve

If p were a learning rate, all runs over p and learning rates would lie on one curve: accuracy and the tail of the
losses over their median, and G_w/G_b over the norm of the convolutions. From the rows of claim 9: raw over p at its
learning rates, and p = 0 over learning rates. What is left for p at equal median, or at equal norm, is p's own. The
same is asked of matched runs.

The paper's: "p is not a simple scalar interpolation", "the roles of p and the learning rate are different". Ours: all
else.
"""

from collections.abc import Sequence

import numpy as np

from hf_pdyn.sweep import statistics
from hf_pdyn.sweep.outcome import ALL_RULE, all_of
from papers._claims import figures
from papers._claims.options import Options
from papers._claims.rows import Configuration, Row
from papers._claims.verdict import Part, Verdict
from papers.allocation import _fixed_p, own_effect
from papers.allocation._curves import along, left_for, r_squared
from papers.allocation._fixed_p import NORM, POINT, RATIOS, Effect, log, table, usual

MEDIAN = Effect(-1, log(table("p50")))
QUANTITIES: dict[str, tuple[Effect, Effect]] = {
    "95th percentile": (Effect(+1, log(table("p95"))), MEDIAN),
    "99th percentile": (Effect(+1, log(table("p99"))), MEDIAN),
    "test accuracy": (Effect(+1, table("accuracy"), POINT), MEDIAN),
    "G_w/G_b": (RATIOS["G_w/G_b falls"], NORM),
    "scale-invariant ratio": (RATIOS["the scale-invariant ratio falls"], MEDIAN),
}
"""What is read, and over what."""
RULE = f"""In each seed, over all raw runs (every p at every learning rate, and p = 0 over learning rates) log p95,
log p99, test accuracy and the log of the scale-invariant ratio are fitted by a quadratic curve along log p50, log
G_w/G_b by one along the log of the convolutions' norm; and each once more with a line over p added. What is left for p
is that line's change from the smallest p to the largest: for each of the five it differs from zero, either way.
Bounds: a factor of {_fixed_p.FACTOR:g}, a point of accuracy. Parts: each of the five, raw, and over matched runs alone.
{ALL_RULE} {statistics.EFFECT_RULE}"""


def columns(rows: Sequence[Row], quantity: str) -> dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """By seed: the quantity, what it is drawn over, and p, of the runs that have both."""
    y, x = QUANTITIES[quantity]
    found = {}
    for seed in sorted({row["configuration"]["seed"] for row in rows}):
        own = [row for row in rows if row["configuration"]["seed"] == seed]
        triples = [(y.value(row["result"]), x.value(row["result"]), row["configuration"]["p"]) for row in own]
        whole = np.array([triple for triple in triples if None not in triple], float)
        found[seed] = (whole[:, 0], whole[:, 1], whole[:, 2])
    return found


def left(rows: Sequence[Row], quantity: str, width: float) -> statistics.Mean:
    """What is left for p, over seeds. width: from the smallest p to the largest."""
    return statistics.mean_of([width * left_for(p, y, x) for y, x, p in columns(rows, quantity).values()])


def fits(rows: Sequence[Row], quantity: str) -> tuple[float, float]:
    """R^2 of the curve, and what p adds to it, means over seeds."""
    found = [(r_squared(y, *along(x)), r_squared(y, *along(x), p)) for y, x, p in columns(rows, quantity).values()]
    alone, both = np.mean(found, 0)
    return float(alone), float(both - alone)


def of_scale(rows: Sequence[Row], scale: str) -> list[Row]:
    return usual(rows, update_scale=scale)


def part(rows: Sequence[Row], quantity: str, width: float) -> Part:
    effect, over = QUANTITIES[quantity]
    found = left(rows, quantity, width)
    alone, adds = fits(rows, quantity)
    name = "norm" if over is NORM else "median"
    return Part(
        statistics.difference(found, effect.bound),
        f"R^2 along the {name} {alone:.3f}, p adds {adds:.3f}; at equal {name} p changes it by "
        f"{own_effect._change(found, effect)}",
    )


def judge(rows: Sequence[Row], given: Options) -> Verdict:
    """By RULE."""
    width = given["exponents"][-1] - given["exponents"][0]
    raw, matched = (
        {name: part(of_scale(rows, scale), name, width) for name in QUANTITIES} for scale in own_effect.SCALES
    )
    return Verdict(
        number=11,
        claim="p does more than a learning rate (ours)",
        paper="p and the learning rate have different roles",
        measured="; ".join(f"{name}: {found.measured} ({found.verdict})" for name, found in raw.items()),
        verdict=all_of(found.verdict for found in raw.values()),
        reason=f"{_fixed_p.data_of(rows)}; {_fixed_p.eps_shares(usual(rows))}.",
        parts={
            **{f"{name}, raw": found for name, found in raw.items()},
            **{f"{name}, matched": found for name, found in matched.items()},
        },
    )


def configurations(given: Options) -> list[Configuration]:
    """Those of claim 9 with the usual eps."""
    return [one for one in own_effect.configurations(given) if one["eps"] != own_effect.LARGE_EPS]


def draw(rows: Sequence[Row], given: Options) -> None:
    """Quantities of all runs over one variable, coloured by p; the control, p = 0 over learning rates, is a line."""
    exponents = given["exponents"]
    colour = dict(zip(exponents, figures.colours(len(exponents)), strict=True))
    shown = ("99th percentile", "test accuracy", "G_w/G_b", "scale-invariant ratio")
    with figures.panels(2, len(shown), height=2.4, sharex="col", sharey="col") as (figure, grid):
        for line, (scale, word) in zip(grid, own_effect.SCALES.items(), strict=True):
            for axes, name in zip(line, shown, strict=True):
                _points(axes, rows, name, scale, colour)
                y, x = QUANTITIES[name]
                axes.set_title(name if scale == "raw" else "")
                figures.logarithmic(axes, "x")
                if y.bound != POINT:
                    figures.logarithmic(axes)
                if scale == "adam":
                    axes.set_xlabel("convolutions' norm" if x is NORM else "median test loss")
            line[0].set_ylabel(word)
        grid[0, 0].plot([], [], color="0.5", label="p = 0 over learning rates")
        figures.legend(figure, columns=5)
        figures.save(figure, given.directory / "figure.png")


def _points(axes: figures.Axes, rows: Sequence[Row], name: str, scale: str, colour: dict[float, object]) -> None:
    y, x = QUANTITIES[name]

    def unlogged(values: list[float | None], effect: Effect) -> np.ndarray:
        found = np.array(values, float)
        return found if effect.bound == POINT else np.exp(found)

    for p, of_p in colour.items():
        own = usual(rows, update_scale=scale, p=p)
        xs, ys = (unlogged([one.value(row["result"]) for row in own], one) for one in (x, y))
        axes.plot(xs, ys, "o", color=of_p, markersize=2.5, label=f"p = {p:g}")
    swept = usual(rows, update_scale="raw", p=0.0)
    means = [unlogged(np.nanmean(_fixed_p.by("lr", swept, one.value), 1).tolist(), one) for one in (x, y)]
    axes.plot(*means, color="0.5", linewidth=1)


CLAIM = _fixed_p.claim(__name__, __doc__, RULE, configurations, judge, draw)
