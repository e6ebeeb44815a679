"""Claim 4: a larger p lowers the weight-to-bias gradient ratio G_w/G_b (IAD 4.1.1, Fig. 3).

    python recipes/claim.py gradient_ratio
    python recipes/claim.py gradient_ratio --device cuda --train_images 10000 --width 32 --epochs 15 --batch_size 128
    python recipes/claim.py gradient_ratio --full --device cuda --data_dir cifar-100-python

A BatchNorm network is trained from scratch with p from -0.4 to 0.3 at two learning rates. Three ratios are read: by
Table 1, in which the scale of a normalisation is bias-like; by parameter name, as Fig. 3's "non-bias and bias
parameters"; and sqrt(sum ||w||^2 ||g||^2) / G_b of convolutions, which does not change when their norms do: before a
normalisation g goes as 1/||w||. Its rows serve the claims after it as well.

The paper's: every p, cosine annealing, ratios of epoch means. Ours: the network, the images, all numbers, no weight
decay and no clipping, eps = 1e-16. The paper names no network, data, batch or number of epochs; its accuracies near
78 % and "downsample layers" made us guess a ResNet on CIFAR-100 for full runs.
"""

from collections.abc import Sequence

import numpy as np

from hf_pdyn.sweep import statistics
from hf_pdyn.sweep.outcome import ALL_RULE, CONFIRMED, OPPOSITE, all_of
from papers._claims import figures
from papers._claims.options import Options
from papers._claims.rows import Configuration, Row
from papers._claims.verdict import Part, Verdict
from papers.allocation import _fixed_p
from papers.allocation._fixed_p import BOUNDS, NORM, RATIOS, Effect, by_p, layer_effect, layer_ratios, table, usual

NEAR = 0.5
RULE = f"""The logarithm of the last epoch's G_w/G_b falls with p at both learning rates. {BOUNDS} Parts, each at both
learning rates. by name: so does the ratio by parameter name. scale-invariant: so does sqrt(sum ||w||^2 ||g||^2) / G_b
of convolutions. norms: the logarithm of the convolutions' norm rises with p. growth: the growth of norms explains the
fall; that is, in each seed the trend of the scale-invariant ratio is above that of G_w/G_b, by a difference that is
above {NEAR:g} of the fall of G_w/G_b; the interval is that of this difference over the fall, less {NEAR:g}; bound 0.1.
layers: each layer's own ratio, of a convolution to the normalisation after it, falls. {ALL_RULE}
{statistics.TREND_RULE} {statistics.EFFECT_RULE}"""
TITLES = {
    "G_w/G_b falls": "G_w / G_b",
    "G_w/G_b by name falls": "by parameter name",
    "the scale-invariant ratio falls": "scale-invariant",
}


def configurations(given: Options) -> list[Configuration]:
    """The raw sweep."""
    return _fixed_p.configurations(given)


def explained(rows: Sequence[Row]) -> statistics.Mean:
    """The part of the fall of G_w/G_b that the scale-invariant ratio does not have, by seed, less NEAR."""
    exponents = sorted({row["configuration"]["p"] for row in rows})
    plain, invariant = (
        statistics.slopes(exponents, by_p(rows, RATIOS[name].value))
        for name in ("G_w/G_b falls", "the scale-invariant ratio falls")
    )
    return statistics.mean_of((plain - invariant) / plain - NEAR)


def judge(rows: Sequence[Row], given: Options) -> Verdict:
    """By RULE."""
    rates = {lr: usual(rows, lr=lr) for lr in _fixed_p.rates(given, "raw")}
    names = list(layer_ratios(rows[0]["result"]))
    layers = {name: [layer_effect(name).outcome(of_lr) for of_lr in rates.values()] for name in names}
    return Verdict(
        number=4,
        claim="Fixed p: G_w/G_b falls with p",
        paper="565 to 42 at lr=0.01 and 374 to 18 at lr=0.1, from p=-0.4 to 0.3, monotone; some layers the other way",
        measured=_told(rates, RATIOS["G_w/G_b falls"]),
        verdict=all_of(RATIOS["G_w/G_b falls"].outcome(of_lr) for of_lr in rates.values()),
        reason=f"{_fixed_p.data_of(rows)}; {_learned(rates)}; {_fixed_p.eps_shares(rows)}.",
        parts={
            "by parameter name": _part(rates, RATIOS["G_w/G_b by name falls"]),
            "scale-invariant": _part(rates, RATIOS["the scale-invariant ratio falls"]),
            "norms of convolutions rise with p": _part(rates, NORM),
            "the fall is the growth of norms (ours)": Part(
                all_of(statistics.effect(explained(of_lr), 0.1) for of_lr in rates.values()),
                "; ".join(f"{_less(explained(of_lr))} of the fall at lr={lr:g}" for lr, of_lr in rates.items())
                + f"; over all runs, log G_w/G_b and log norm correlate by {_correlation(rows):.2f}",
            ),
            "every layer's own ratio falls": Part(
                all_of(outcome for found in layers.values() for outcome in found), _layers_told(layers)
            ),
        },
        figures={
            f"lr={lr:g}": {
                **{name: statistics.means_by_p(given["exponents"], np.exp(by_p(of_lr, one.value)))
                   for name, one in (RATIOS | {"norm of convolutions": NORM}).items()},
                "train accuracy": statistics.means_by_p(
                    given["exponents"], by_p(of_lr, table("accuracy", "train"))
                ),
                "trends of layers' own log ratio": {
                    name: [str(layer_effect(name, invariant=kind).trend(of_lr)) for kind in (False, True)]
                    for name in names
                },
            }
            for lr, of_lr in rates.items()
        },
    )  # fmt: skip


def _less(found: statistics.Mean) -> str:
    return f"{found.mean + NEAR:.2f} ± {found.spread:.2f}"


def _part(rates: dict[float, list[Row]], effect: Effect) -> Part:
    return Part(all_of(effect.outcome(rows) for rows in rates.values()), _told(rates, effect))


def _told(rates: dict[float, list[Row]], effect: Effect) -> str:
    """Both ends, and the outcome."""
    told = []
    for lr, rows in rates.items():
        first, final = (statistics.mean_of(np.exp(by_p(rows, effect.value)[i])) for i in (0, -1))
        told.append(f"{first} to {final} at lr={lr:g} ({effect.outcome(rows)})")
    return "; ".join(told)


def _learned(rates: dict[float, list[Row]]) -> str:
    """How far the networks came, without which ratios cannot be read."""
    found = {lr: by_p(rows, table("accuracy", "train")).mean(1) for lr, rows in rates.items()}
    told = ", ".join(f"{values[0]:.0%} to {values[-1]:.0%} at lr={lr:g}" for lr, values in found.items())
    return f"train accuracy from the first p to the last {told}"


def _correlation(rows: Sequence[Row]) -> float:
    pairs = np.array([[RATIOS["G_w/G_b falls"].value(row["result"]), NORM.value(row["result"])] for row in rows], float)
    return float(np.corrcoef(pairs[np.isfinite(pairs).all(1)].T)[0, 1])


def _layers_told(layers: dict[str, list[object]]) -> str:
    falling = [name for name, found in layers.items() if set(found) == {CONFIRMED}]
    rising = [name for name, found in layers.items() if OPPOSITE in found]
    named = ", ".join(rising) or "none"
    return f"{len(falling)} of {len(layers)} fall at each learning rate; {named} rises at one or more"


def draw(rows: Sequence[Row], given: Options) -> None:
    """Fig. 3 over epochs, and the last epoch's three ratios over p; `layers.png`: each layer's own."""
    rates, exponents = _fixed_p.rates(given, "raw"), given["exponents"]
    with figures.panels(len(rates), 4, height=2.3, sharex="col") as (figure, grid):
        for line, lr in zip(grid, rates, strict=True):
            of_lr = usual(rows, lr=lr)
            _over_epochs(line[0], of_lr, exponents)
            line[0].set(ylabel=f"lr = {lr:g}\nG_w / G_b", title="G_w / G_b over epochs" if lr == rates[0] else "")
            for axes, (name, title) in zip(line[1:], TITLES.items(), strict=True):
                values = np.exp(by_p(of_lr, RATIOS[name].value)).T
                figures.band(axes, exponents, values, color="0.2", marker="o", markersize=3)
                axes.set(title=title if lr == rates[0] else "", ylim=(0, None))
        for axes, name in zip(grid[-1], ("epoch", "p", "p", "p"), strict=True):
            axes.set_xlabel(name)
        figures.legend(figure)
        figures.save(figure, given.directory / "figure.png")
    _draw_layers(rows, given)


def _over_epochs(axes: figures.Axes, rows: Sequence[Row], exponents: Sequence[float]) -> None:
    curves = [
        [row["result"]["curves"]["G_w_over_G_b"] for row in rows if row["configuration"]["p"] == p] for p in exponents
    ]
    for p, of_p, colour in zip(exponents, curves, figures.colours(len(exponents)), strict=True):
        values = np.array(of_p, float)
        axes.plot(_fixed_p.epochs_of(rows), values.mean(0), color=colour, label=f"p = {p:g}")
    axes.set_ylim(0, None)


def _draw_layers(rows: Sequence[Row], given: Options) -> None:
    rates, names = _fixed_p.rates(given, "raw"), list(layer_ratios(rows[0]["result"]))
    kinds = {False: "own G_w / G_b", True: "times ||w||"}
    with figures.panels(len(rates), 2, height=2.6, sharex=True) as (figure, grid):
        for line, lr in zip(grid, rates, strict=True):
            for axes, (invariant, title) in zip(line, kinds.items(), strict=True):
                for name, colour in zip(names, figures.colours(len(names)), strict=True):
                    values = by_p(usual(rows, lr=lr), layer_effect(name, invariant=invariant).value)
                    relative = np.exp(values - values[0])
                    axes.plot(given["exponents"], relative.mean(1), color=colour, label=name, marker="o", markersize=3)
                axes.set(title=f"{title}, over that at the smallest p, lr = {lr:g}")
                figures.logarithmic(axes)
        for axes in grid[-1]:
            axes.set_xlabel("p")
        figures.legend(figure)
        figures.save(figure, given.directory / "layers.png")


CLAIM = _fixed_p.claim(__name__, __doc__, RULE, configurations, judge, draw)
