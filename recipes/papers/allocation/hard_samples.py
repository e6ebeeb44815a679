"""Claim 6: which samples are hard depends on p (IAD 4.1.3, Fig. 5), against what a seed or a learning rate changes.

    python recipes/claim.py hard_samples

From the rows of claim 4, and for the two most distant p a second training on the same images, with other initial
weights and another order. The hardest tenth of the train and of the test set, by the loss after training, is compared
by Jaccard's index. The paper compares p with p in runs that share a seed; but two seeds of one p do not share all hard
samples either, and nor do two learning rates. So there are two controls. seed: two trainings of one p share no more
than two of different p, where seeds always differ. learning rate: with p = 0, two learning rates whose medians are
nearest to those of the two p share no less than these do, with one seed.

The paper's: as claim 4; the hardest tenth and Jaccard's index. Ours: as claim 4; the controls.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from hf_pdyn.sweep import statistics
from hf_pdyn.sweep.outcome import ALL_RULE, CONFIRMED, INCONCLUSIVE, OPPOSITE, Outcome, all_of
from papers._claims import figures
from papers._claims.options import Options
from papers._claims.rows import Configuration, Row, chosen
from papers._claims.stacked_training import unpacked
from papers._claims.training import SPLITS
from papers._claims.verdict import Part, Verdict
from papers.allocation import _fixed_p
from papers.allocation._fixed_p import log, table, usual

BOUND, LEVEL = 0.05, 0.05
OTHER = 100
"""What the second training's seed has more than its split."""
RULE = f"""In both sets, at both learning rates: Jaccard's index of two trainings on the same images with one p, the
smallest or the largest (mean of both), is above that of two with these different p; initial weights and order always
differ. By split; bound: {BOUND:g}. Confirmed or opposite only where, besides, the exact permutation of the signs of
the splits' differences gives a two-sided probability of at most {LEVEL:g}, else inconclusive. Parts, for both sets and
learning rates. learning rate: with p = 0, one seed, and the two learning rates whose median test losses are nearest to
those of the smallest and the largest p (mean of logarithms over seeds; different ones), Jaccard's index is above that
of these two p with one seed; same bound, same permutation. matched: the first question for updates of Adam's size, at
the larger of their learning rates. {ALL_RULE} {statistics.EFFECT_RULE}"""


def configurations(given: Options) -> list[Configuration]:
    """The ends of the raw sweep and of the matched one, twice; the raw sweep; p = 0 over learning rates."""
    ends = (given["exponents"][0], given["exponents"][-1])
    once = [
        *_fixed_p.configurations(given, exponents=ends),
        *_fixed_p.configurations(given, "adam", exponents=ends, at=given["matched_rates"][-1:]),
    ]
    again = [_fixed_p.with_seed(one, one["split"] + OTHER) for one in once]
    return _fixed_p.without_doubles([*once, *again, *_fixed_p.swept(given), *_fixed_p.configurations(given)])


def hard(row: Row, split: str) -> np.ndarray:
    """A mask of its hard samples."""
    return unpacked(row["result"]["hard"][split], row["result"]["samples"][split])


def jaccard(one: Row, other: Row, split: str) -> float:
    """The Jaccard index of the hard samples of two runs on the same images."""
    masks = hard(one, split), hard(other, split)
    return float((masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum())


def of_split(rows: Sequence[Row], draw: int, again: bool, **where: object) -> Row:
    """The run on the images of a draw, with its first seed or again with another."""
    (found,) = chosen(rows, split=draw, seed=draw + OTHER * again, eps=1e-16, lr_scheduler="cosine", **where)
    return found


def draws(rows: Sequence[Row]) -> list[int]:
    return sorted({row["configuration"]["split"] for row in rows})


def by_seed(rows: Sequence[Row], ends: Sequence[float], split: str, **where: object) -> dict[str, np.ndarray]:
    """Jaccard's index by draw: of the two p with other seeds (`apart`), of the smaller with itself, of the larger."""
    found: dict[str, list[float]] = {"apart": [], "small": [], "large": []}
    for draw in draws(rows):
        small, large = ([of_split(rows, draw, again, p=p, **where) for again in (False, True)] for p in ends)
        found["small"].append(jaccard(*small, split))
        found["large"].append(jaccard(*large, split))
        found["apart"].append((jaccard(small[0], large[1], split) + jaccard(small[1], large[0], split)) / 2)
    return {name: np.array(values) for name, values in found.items()}


def nearest_rates(rows: Sequence[Row], given: Options, lr: float) -> tuple[float, float]:
    """With p = 0, learning rates whose medians are nearest to those of the smallest and the largest p."""
    ends = [
        _median(usual(rows, update_scale="raw", lr=lr, p=p)) for p in (given["exponents"][0], given["exponents"][-1])
    ]
    swept = usual(rows, update_scale="raw", p=0.0)
    rates = sorted({row["configuration"]["lr"] for row in swept})
    medians = {rate: _median(chosen(swept, lr=rate)) for rate in rates}

    def off(pair: tuple[float, float]) -> float:
        found = sum(abs(medians[rate] - end) for rate, end in zip(pair, ends, strict=True))
        return found if math.isfinite(found) else math.inf

    return min(itertools.permutations(rates, 2), key=off)


def _median(rows: Sequence[Row]) -> float:
    """The log of the median test loss, mean over the runs that have one; NaN without any."""
    found = [value for row in rows if (value := log(table("p50"))(row["result"])) is not None]
    return sum(found) / len(found) if found else math.nan


def by_rate(rows: Sequence[Row], given: Options, lr: float, split: str) -> dict[str, np.ndarray]:
    """Jaccard's index by draw, with one seed: of the two p (`apart`), and of the two learning rates (`rates`)."""
    ends, rates = (given["exponents"][0], given["exponents"][-1]), nearest_rates(rows, given, lr)
    found: dict[str, list[float]] = {"apart": [], "rates": []}
    for draw in draws(rows):
        of_p = [of_split(rows, draw, False, p=p, lr=lr, update_scale="raw") for p in ends]
        of_rates = [of_split(rows, draw, False, p=0.0, lr=rate, update_scale="raw") for rate in rates]
        found["apart"].append(jaccard(*of_p, split))
        found["rates"].append(jaccard(*of_rates, split))
    return {name: np.array(values) for name, values in found.items()}


def permutation(differences: np.ndarray) -> float:
    """The two-sided probability of a mean as far from zero, if all signs were equally likely; exact."""
    signs = np.array(list(itertools.product((1, -1), repeat=len(differences))))
    means = np.abs((signs * differences).mean(1))
    return float((means >= abs(differences.mean()) * (1 - 1e-9)).mean())


def judged(differences: np.ndarray) -> Outcome:
    """By RULE."""
    outcome = statistics.effect(statistics.mean_of(differences), BOUND)
    if outcome in (CONFIRMED, OPPOSITE) and permutation(differences) > LEVEL:
        return INCONCLUSIVE
    return outcome


def _migration(rows: Sequence[Row], given: Options, settings: Sequence[dict[str, object]]) -> Part:
    """The first question, in both sets."""
    ends = (given["exponents"][0], given["exponents"][-1])
    outcomes, told = [], []
    for where, split in itertools.product(settings, SPLITS):
        found = by_seed(rows, ends, split, **where)
        differences = (found["small"] + found["large"]) / 2 - found["apart"]
        outcomes.append(judged(differences))
        told.append(
            f"{split} at lr={where['lr']:g} {found['apart'].mean():.2f} ({found['small'].mean():.2f}, "
            f"{found['large'].mean():.2f}; less by {statistics.mean_of(differences)}, permutation "
            f"{permutation(differences):.2g}: {outcomes[-1]})"
        )
    return Part(all_of(outcomes), "; ".join(told))


def _learning_rate(rows: Sequence[Row], given: Options) -> Part:
    outcomes, told = [], []
    for lr, split in itertools.product(_fixed_p.rates(given, "raw"), SPLITS):
        found = by_rate(rows, given, lr, split)
        differences = found["rates"] - found["apart"]
        outcomes.append(judged(differences))
        rates = ", ".join(f"{rate:g}" for rate in nearest_rates(rows, given, lr))
        told.append(
            f"{split} at lr={lr:g} {found['apart'].mean():.2f}, p = 0 at lr={rates} {found['rates'].mean():.2f} (less "
            f"by {statistics.mean_of(differences)}, permutation {permutation(differences):.2g}: {outcomes[-1]})"
        )
    return Part(all_of(outcomes), "; ".join(told))


def judge(rows: Sequence[Row], given: Options) -> Verdict:
    """By RULE."""
    raw = [{"lr": lr, "update_scale": "raw"} for lr in _fixed_p.rates(given, "raw")]
    main = _migration(rows, given, raw)
    hard_test, samples = hard(rows[0], "test").sum(), rows[0]["result"]["samples"]["test"]
    shared = hard_test**2 / samples
    return Verdict(
        number=6,
        claim="Hard samples migrate with p",
        paper="Jaccard's index of p=-0.4 and p=0.3 is 0.35 on the test set and 0.125 on the train set (lr=0.01); no "
        "control",
        measured=f"Jaccard's index of the two p, other seed (of two seeds with the smaller p, with the larger): "
        f"{main.measured}; by chance {shared / (2 * hard_test - shared):.2f}",
        verdict=main.verdict,
        reason=f"{_fixed_p.data_of(rows)}; {_fixed_p.eps_shares(rows)}.",
        parts={
            "less than a learning rate's change to the same medians (ours)": _learning_rate(rows, given),
            "matched (ours)": _migration(rows, given, [{"lr": given["matched_rates"][-1], "update_scale": "adam"}]),
        },
        figures={
            f"lr={lr:g}, {split}": {
                "all p, one seed": np.round(overlaps(rows, given, lr, split), 3).tolist(),
            }
            for lr, split in itertools.product(_fixed_p.rates(given, "raw"), SPLITS)
        },
    )


def overlaps(rows: Sequence[Row], given: Options, lr: float, split: str) -> np.ndarray:
    """Fig. 5: of every p with every p, one seed, mean over draws."""
    exponents = given["exponents"]
    found = []
    for draw in draws(rows):
        runs = [of_split(rows, draw, False, p=p, lr=lr, update_scale="raw") for p in exponents]
        found.append([[jaccard(one, other, split) for other in runs] for one in runs])
    return np.mean(found, 0)


def draw(rows: Sequence[Row], given: Options) -> None:
    """Fig. 5's two panels at each learning rate, and beside them bars: the two most distant p, and the controls."""
    rates, exponents = _fixed_p.rates(given, "raw"), given["exponents"]
    ends = (exponents[0], exponents[-1])
    ticks = range(0, len(exponents), 2), [f"{p:g}" for p in exponents[::2]]
    with figures.panels(len(rates), 4, height=2.4) as (figure, grid):
        for line, lr in zip(grid, rates, strict=True):
            for column, split in enumerate(SPLITS):
                values = overlaps(rows, given, lr, split)
                axes = line[column]
                image = axes.imshow(values, vmin=0, vmax=1, cmap="viridis")
                axes.text(len(exponents) - 0.6, 0, f"{values[0, -1]:.2f}", ha="right", va="center", color="white")
                axes.set_xticks(*ticks)
                axes.set_yticks(*ticks)
                axes.grid(False)
                axes.set(title=f"{split}, lr = {lr:g}, one seed", xlabel="p", ylabel="p" if not column else "")
                _bars(line[2 + column], rows, given, lr, split, ends)
        figure.colorbar(image, ax=grid[:, :2], label="Jaccard's index", location="bottom", shrink=0.6)
        figures.save(figure, given.directory / "figure.png")


def _bars(
    axes: figures.Axes, rows: Sequence[Row], given: Options, lr: float, split: str, ends: tuple[float, float]
) -> None:
    seeds = by_seed(rows, ends, split, lr=lr, update_scale="raw")
    rates = by_rate(rows, given, lr, split)
    bars = {
        "two p, other seed": seeds["apart"],
        f"p = {ends[0]:g}, other seed": seeds["small"],
        f"p = {ends[1]:g}, other seed": seeds["large"],
        "two p, one seed": rates["apart"],
        "p = 0, two lr, one seed": rates["rates"],
    }
    colours = ["C0", "0.6", "0.6", "C0", "0.6"]
    means = [values.mean() for values in bars.values()]
    axes.barh(range(len(bars)), means, xerr=[values.std(ddof=1) for values in bars.values()], color=colours)
    axes.set_yticks(range(len(bars)), list(bars) if split == SPLITS[0] else [], fontsize=7)
    axes.invert_yaxis()
    axes.set(title=f"{split}, lr = {lr:g}", xlim=(0, 1))


CLAIM = _fixed_p.claim(__name__, __doc__, RULE, configurations, judge, draw)
