"""Claim 4: a larger p lowers the weight-to-bias gradient ratio G_w/G_b (IAD 4.1.1, Fig. 3).

    python recipes/papers/allocation/gradient_ratio.py
    accelerate launch recipes/papers/allocation/gradient_ratio.py --full --device cuda --data_dir cifar-100-python

A BatchNorm network is trained from scratch with p from -0.4 to 0.3. Quick: a small ResNet on 90 of scikit-learn's
digits, 40 epochs. Full: ResNet-18 on CIFAR-100 or CIFAR-10 (an unpacked cifar-100-python or cifar-10-batches-py),
200 epochs. Both with cosine decay, without weight decay and clipping, of which the paper says nothing. Its rows
serve the claims after it as well.
"""

from collections.abc import Sequence

import numpy as np

import _fixed_p
from _claims import figures, statistics
from _claims.claim import Claim
from _claims.options import Options
from _claims.rows import Result, Row
from _claims.verdict import Verdict
from _fixed_p import EXPONENTS, PAPERS_RATES, by_p, final_ratio

NAME = "gradient_ratio"
RULE = (
    "confirmed where the last epoch's G_w/G_b falls with p at both of the paper's learning rates. "
    f"{statistics.TREND_RULE}"
)
CONVOLUTION, NORMALIZATION = ".convolution", ".normalization"


def layer_ratio(result: Result, layer: str) -> float | None:
    """G_w/G_b of a convolution and the normalisation that follows it, or of the classifier, in the last epoch."""
    weights, biases = result["layers"]["weight"], result["layers"]["bias_like"]
    weight, bias = weights[layer], biases[layer.replace(CONVOLUTION, NORMALIZATION)]
    return weight / bias if weight is not None and bias else None


def train_accuracy(result: Result) -> float | None:
    """Of the last epoch."""
    return result["table_2"]["train"]["accuracy"]


def layers(rows: Sequence[Row]) -> list[str]:
    """Names of the layers that have both, from the input to the output."""
    return list(rows[0]["result"]["layers"]["weight"])


def judge(rows: Sequence[Row], given: Options) -> Verdict:
    """By RULE."""
    rates = _fixed_p.learning_rates(given)
    trends = {lr: statistics.trend(by_p(rows, final_ratio, lr=lr)) for lr in rates}
    by_layer = {
        lr: {
            layer: statistics.trend(by_p(rows, lambda result, layer=layer: layer_ratio(result, layer), lr=lr)).verdict(
                +1
            )
            for layer in layers(rows)
        }
        for lr in rates
    }
    against = {
        lr: [layer for layer, verdict in found.items() if verdict == statistics.CONFIRMED]
        for lr, found in by_layer.items()
    }
    ends = {lr: [statistics.mean_of(by_p(rows, final_ratio, lr=lr)[i]) for i in (0, -1)] for lr in rates}
    told = "; ".join(f"{ends[lr][0]} to {ends[lr][1]} at lr={lr:g} ({trends[lr].verdict(-1)})" for lr in rates)
    return Verdict(
        number=4,
        claim="Fixed p: G_w/G_b falls with p",
        paper="565 to 42 at lr=0.01 and 374 to 18 at lr=0.1, from p=-0.4 to 0.3, monotone; some layers the other way",
        rule=RULE,
        measured=f"{told}; layers that rise with p: {_told(against)}",
        verdict=statistics.all_of(trends[lr].verdict(-1) for lr in PAPERS_RATES),
        seeds=given.seeds,
        size=given.size,
        reason=_learned(rows, rates),
        figures={
            f"lr={lr:g}": {
                "G_w/G_b": statistics.means_by_p(EXPONENTS, by_p(rows, final_ratio, lr=lr)),
                "correlation": trends[lr].correlation,
                "change": str(trends[lr].change),
                "train accuracy": statistics.means_by_p(EXPONENTS, by_p(rows, train_accuracy, lr=lr)),
                "layers that rise": against[lr],
            }
            for lr in rates
        },
    )


def _learned(rows: Sequence[Row], rates: Sequence[float]) -> str:
    """How far the networks came, without which ratios cannot be read."""
    found = {lr: by_p(rows, train_accuracy, lr=lr).mean(1) for lr in rates}
    told = ", ".join(f"{values[0]:.0%} to {values[-1]:.0%} at lr={lr:g}" for lr, values in found.items())
    return (
        f"p also sets the size of updates, and so how far training comes: train accuracy from p=-0.4 to 0.3 is {told}."
    )


def _told(against: dict[float, list[str]]) -> str:
    return ", ".join(f"{len(names)} at lr={lr:g}" for lr, names in against.items())


def draw(rows: Sequence[Row], given: Options) -> None:
    """Fig. 3, with the last epoch over p, and layer by layer."""
    rates = _fixed_p.learning_rates(given)
    colours = figures.colours(len(EXPONENTS))
    with figures.panels(3, len(rates)) as (figure, grid):
        for column, lr in enumerate(rates):
            curves, ends, heat = grid[:, column]
            for p, colour in zip(EXPONENTS, colours, strict=True):
                of_p = [r for r in rows if (r["configuration"]["p"], r["configuration"]["lr"]) == (p, lr)]
                values = np.array([r["result"]["curves"]["G_w_over_G_b"] for r in of_p], float)
                figures.band(curves, np.arange(1, values.shape[1] + 1), values, color=colour, label=f"p = {p:g}")
            curves.set(title=f"lr = {lr:g}", yscale="log", xlabel="epoch", ylabel="G_w / G_b")
            figures.band(ends, EXPONENTS, by_p(rows, final_ratio, lr=lr).T, color="0.2", marker="o", markersize=4)
            ends.set(yscale="log", xlabel="p", ylabel="G_w / G_b, last epoch")
            _heat_map(heat, rows, lr)
        grid[0, 0].legend(ncols=2)
        figures.save(figure, given.directory / "figure.png")


def _heat_map(axes: figures.Axes, rows: Sequence[Row], lr: float) -> None:
    names = layers(rows)
    ratios = np.array([by_p(rows, lambda r, n=name: layer_ratio(r, n), lr=lr).mean(1) for name in names])
    relative = np.log2(ratios / ratios[:, EXPONENTS.index(0.0)][:, None])
    largest = np.nanmax(np.abs(relative))
    image = axes.imshow(relative, aspect="auto", cmap="PuOr_r", vmin=-largest, vmax=largest)
    axes.set_xticks(range(len(EXPONENTS)), [f"{p:g}" for p in EXPONENTS])
    axes.set_yticks(range(len(names)), [short(name) for name in names], fontsize=7)
    axes.set(xlabel="p", title="layers: log2 of G_w/G_b over its p = 0")
    axes.grid(False)
    axes.figure.colorbar(image, ax=axes)


def short(layer: str) -> str:
    """A layer's name without what all of them have."""
    for long, brief in (
        ("resnet.", ""),
        ("encoder.stages.", "stage "),
        (".layers.", "."),
        (".layer.", " conv "),
        (CONVOLUTION, ""),
    ):
        layer = layer.replace(long, brief)
    return layer


CLAIM = Claim(NAME, __doc__, _fixed_p.configurations, _fixed_p.run, judge, draw, _fixed_p.ROWS, _fixed_p.FULL_NEEDS)

if __name__ == "__main__":
    CLAIM.main()
