"""Claim 4: a larger p lowers the weight-to-bias gradient ratio G_w/G_b (IAD 4.1.1, Fig. 3).

    python recipes/claim.py gradient_ratio
    accelerate launch recipes/claim.py gradient_ratio --full --device cuda --data_dir cifar-100-python

A BatchNorm network is trained from scratch with p from -0.4 to 0.3. Quick: a small ResNet on 90 of scikit-learn's
digits, 40 epochs. Full: ResNet-18 on CIFAR-100 or CIFAR-10 (an unpacked cifar-100-python or cifar-10-batches-py),
200 epochs. Its rows serve the claims after it as well.

The paper's: every p, the learning rates 0.01 and 0.1, cosine annealing, ratios of epoch means. Ours: the network, the
images, batches of 10 (full: 128), the epochs, eps, no weight decay and no clipping, the learning rates 0.3 and 1. The
paper names no network, data, batch or number of epochs; its accuracies near 78 % and "downsample layers" made us guess
a ResNet on CIFAR-100 for full runs.
"""

import functools
import itertools
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.image import AxesImage

from hf_pdyn.sweep import statistics
from hf_pdyn.sweep.outcome import ALL_RULE, CONFIRMED, OPPOSITE, Outcome, all_of
from papers._claims import figures
from papers._claims.claim import Claim
from papers._claims.options import Options
from papers._claims.rows import Result, Row, chosen
from papers._claims.verdict import Verdict
from papers.allocation import _fixed_p
from papers.allocation._fixed_p import (
    BOUND,
    EXPONENTS,
    FACTOR,
    PAPERS_RATES,
    by_p,
    falls_by_layer,
    final_ratio,
    has_died,
    last_ratios,
    layer_ratios,
    layers,
    log_trend,
    short,
)

RULE = f"""The logarithm of the last epoch's G_w/G_b falls with p at both of the paper's learning rates. Bound: a
factor of {FACTOR:g}. {ALL_RULE} {statistics.TREND_RULE} {statistics.EFFECT_RULE}"""


def train_accuracy(result: Result) -> float | None:
    """Of the last epoch."""
    return result["table_2"]["train"]["accuracy"]


def judge(rows: Sequence[Row], given: Options) -> Verdict:
    """By RULE."""
    rates = _fixed_p.learning_rates(given)
    trends = {lr: log_trend(by_p(rows, final_ratio, lr=lr)) for lr in rates}
    falls = {lr: statistics.effect(trends[lr], BOUND, direction=-1) for lr in rates}
    of_layers = {lr: falls_by_layer(rows, lr=lr) for lr in rates}
    ends = {lr: [statistics.mean_of(by_p(rows, final_ratio, lr=lr)[i]) for i in (0, -1)] for lr in rates}
    told = "; ".join(f"{ends[lr][0]} to {ends[lr][1]} at lr={lr:g} ({falls[lr]})" for lr in rates)
    own = "; ".join(
        f"{len(_layers_that(found, CONFIRMED))} of {len(found)} fall and {_named(_layers_that(found, OPPOSITE))} at "
        f"lr={lr:g}"
        for lr, found in of_layers.items()
    )
    return Verdict(
        number=4,
        claim="Fixed p: G_w/G_b falls with p",
        paper="565 to 42 at lr=0.01 and 374 to 18 at lr=0.1, from p=-0.4 to 0.3, monotone; some layers the other way",
        measured=f"{told}. Layers: {own}",
        verdict=all_of(falls[lr] for lr in PAPERS_RATES),
        reason=_learned(rows, rates),
        figures={
            f"lr={lr:g}": {
                "G_w/G_b": statistics.means_by_p(EXPONENTS, by_p(rows, final_ratio, lr=lr)),
                "trend of log G_w/G_b": str(trends[lr]),
                "train accuracy": statistics.means_by_p(EXPONENTS, by_p(rows, train_accuracy, lr=lr)),
                "dead networks": int(by_p(rows, has_died, lr=lr).sum()),
                "layers that fall": _layers_that(of_layers[lr], CONFIRMED),
                "layers that rise": _layers_that(of_layers[lr], OPPOSITE),
            }
            for lr in rates
        },
    )


def _learned(rows: Sequence[Row], rates: Sequence[float]) -> str:
    """How far the networks came, without which ratios cannot be read."""
    found = {lr: by_p(rows, train_accuracy, lr=lr).mean(1) for lr in rates}
    told = ", ".join(f"{values[0]:.0%} to {values[-1]:.0%} at lr={lr:g}" for lr, values in found.items())
    dead = sum(int(by_p(rows, has_died, lr=lr).sum()) for lr in rates)
    return (
        "p also sets the size of updates, and so how far training comes: train accuracy after the last epoch, from "
        f"p=-0.4 to 0.3, is {told}. {dead} networks of {len(rows)} died, and have no ratio."
    )


def _layers_that(falls: dict[str, Outcome], wanted: Outcome) -> list[str]:
    return [layer for layer, outcome in falls.items() if outcome is wanted]


def _named(rising: list[str]) -> str:
    return f"{', '.join(map(short, rising))} rises" if rising else "none rises"


def draw(rows: Sequence[Row], given: Options) -> None:
    """Fig. 3, with the last epoch over p, globally and by layer; `layers.png`: Fig. 3 for every layer."""
    _draw_layers(rows, given)
    rates = _fixed_p.learning_rates(given)
    largest = max(float(np.nanmax(np.abs(_relative(rows, lr)), initial=0.1)) for lr in rates)
    with figures.panels(3, len(rates), height=2.3, sharey="row") as (figure, grid):
        for column, lr in enumerate(rates):
            curves, ends, heat = grid[:, column]
            _curves(curves, rows, lr, _epochs(rows), lambda result: result["curves"]["G_w_over_G_b"])
            curves.set(title=f"lr = {lr:g}", xlabel="epoch")
            figures.band(ends, EXPONENTS, by_p(rows, final_ratio, lr=lr).T, color="0.2", marker="o", markersize=4)
            ends.set_xlabel("p")
            image = _heat_map(heat, rows, lr, largest)
            if lr not in PAPERS_RATES:
                figures.control([curves, ends])
        grid[0, 0].set(ylabel="G_w / G_b", ylim=(0, None))
        grid[1, 0].set(ylabel="G_w / G_b, last epoch", ylim=(0, None))
        figure.colorbar(image, ax=grid[2], label="log2 of its own\nG_w/G_b at p = 0")
        figures.legend(figure)
        figures.save(figure, given.directory / "figure.png")


def _draw_layers(rows: Sequence[Row], given: Options) -> None:
    rates, names = _fixed_p.learning_rates(given), layers(rows)
    with figures.panels(len(names), len(rates), height=1.4, sharex=True, sharey="row") as (figure, grid):
        for (row, name), (column, lr) in itertools.product(enumerate(names), enumerate(rates)):
            axes = grid[row, column]
            _curves(axes, rows, lr, _fixed_p.thinned(_epochs(rows)), functools.partial(layer_ratios, layer=name))
            figures.logarithmic(axes)
            if lr not in PAPERS_RATES:
                figures.control([axes])
        for axes, lr in zip(grid[0], rates, strict=True):
            axes.set_title(f"lr = {lr:g}")
        for axes in grid[-1]:
            axes.set_xlabel("epoch")
        for axes, name in zip(grid[:, 0], names, strict=True):
            axes.set_ylabel(short(name), fontsize=8)
        figures.legend(figure)
        figures.save(figure, given.directory / "layers.png")


def _epochs(rows: Sequence[Row]) -> Sequence[int]:
    return range(1, len(rows[0]["result"]["curves"]["D_w"]) + 1)


def _curves(
    axes: figures.Axes,
    rows: Sequence[Row],
    lr: float,
    epochs: Sequence[int],
    ratios: Callable[[Result], Sequence[float | None]],
) -> None:
    """A ratio over epochs, by p. A network that died has none, and leaves its seed's mean where it did."""
    for p, colour in zip(EXPONENTS, figures.colours(len(EXPONENTS)), strict=True):
        values = np.array([ratios(row["result"]) for row in chosen(rows, p=p, lr=lr)], float)
        values[~(values > 0)] = np.nan
        figures.band(axes, epochs, values, color=colour, label=f"p = {p:g}")


def _relative(rows: Sequence[Row], lr: float) -> np.ndarray:
    """Log2 of every layer's last G_w/G_b over that at p = 0, (layers, p)."""
    ratios = np.array([last_ratios(rows, name, lr=lr).mean(1) for name in layers(rows)])
    return np.log2(ratios / ratios[:, EXPONENTS.index(0.0)][:, None])


def _heat_map(axes: figures.Axes, rows: Sequence[Row], lr: float, largest: float) -> AxesImage:
    names = layers(rows)
    image = axes.imshow(_relative(rows, lr), aspect="auto", cmap="PuOr_r", vmin=-largest, vmax=largest)
    axes.set_xticks(range(0, len(EXPONENTS), 2), [f"{p:g}" for p in EXPONENTS[::2]])
    axes.set_yticks(range(len(names)), [short(name) for name in names], fontsize=8)
    axes.set(xlabel="p")
    axes.grid(False)
    return image


CLAIM = Claim(
    __name__, __doc__, RULE, _fixed_p.configurations, _fixed_p.run, judge, draw, _fixed_p.folder_of, _fixed_p.OPTIONS
)
