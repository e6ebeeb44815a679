"""Claim 6: which samples are hard depends on p (IAD 4.1.3, Fig. 5), against what two seeds of the same p share.

    python recipes/papers/allocation/hard_samples.py

From the rows of claim 4, which are run first where they are missing. The hardest tenth of the train and of the test
set, by the loss after the last epoch, is compared by Jaccard's index. The paper compares p with p; but two seeds of
one p do not share all hard samples either. So pairs of runs always differ in their seed here, and the question is
whether a difference in p comes on top.
"""

import itertools
from collections.abc import Sequence

import numpy as np

import _fixed_p
from _claims import figures, statistics
from _claims.claim import Claim
from _claims.options import Options
from _claims.rows import Row
from _claims.verdict import Verdict
from _fixed_p import EXPONENTS, PAPERS_RATES
from hf_pdyn.sample_loss import jaccard

NAME = "hard_samples"
SPLITS = ("train", "test")
RULE = (
    "confirmed where, at both of the paper's learning rates and in both sets, runs with p=-0.4 and p=0.3 (and "
    "different seeds) share fewer hard samples than runs of the same p and different seeds, by more than "
    f"{statistics.STANDARD_ERRORS:g} standard errors over pairs of seeds; not confirmed where they do not share "
    "fewer in the mean somewhere; else inconclusive. (Pairs of seeds have seeds in common, which the standard error "
    "passes over.)"
)


def hard_sets(rows: Sequence[Row], lr: float, split: str) -> dict[tuple[float, int], list[int]]:
    """By p and seed."""
    found = {
        (r["configuration"]["p"], r["configuration"]["seed"]): r["result"]
        for r in rows
        if r["configuration"]["lr"] == lr
    }
    return {key: result["hard"][split] for key, result in found.items()}


def overlaps(rows: Sequence[Row], lr: float, split: str, *, same_seed: bool) -> np.ndarray:
    """Jaccard's index of every p with every p, (pairs of seeds, p, p): of equal seeds, or of every two different "
    "ones."""
    hard = hard_sets(rows, lr, split)
    seeds = sorted({seed for _, seed in hard})
    pairs = [(seed, seed) for seed in seeds] if same_seed else list(itertools.combinations(seeds, 2))
    found = np.array(
        [[[jaccard(hard[p, one], hard[q, other]) for q in EXPONENTS] for p in EXPONENTS] for one, other in pairs]
    )
    return found if same_seed else (found + found.transpose(0, 2, 1)) / 2


def migration(rows: Sequence[Row], lr: float, split: str) -> tuple[statistics.Mean, statistics.Mean, statistics.Mean]:
    """Over pairs of seeds: the overlap at the same p, that of the most distant p, and the first less the second."""
    found = overlaps(rows, lr, split, same_seed=False)
    same = found.diagonal(axis1=1, axis2=2).mean(1)
    apart = found[:, 0, -1]
    return tuple(statistics.mean_of(values.tolist()) for values in (same, apart, same - apart))


def verdict_of(difference: statistics.Mean) -> str:
    """By RULE, of one set at one learning rate."""
    if difference.mean <= 0:
        return statistics.NOT_CONFIRMED
    return statistics.CONFIRMED if statistics.differs(difference) else statistics.INCONCLUSIVE


def judge(rows: Sequence[Row], given: Options) -> Verdict:
    """By RULE."""
    found = {(lr, split): migration(rows, lr, split) for lr in _fixed_p.learning_rates(given) for split in SPLITS}
    told = "; ".join(
        f"{split} at lr={lr:g}: {apart.mean:.2f}, control {same.mean:.2f} ({verdict_of(difference)})"
        for (lr, split), (same, apart, difference) in found.items()
    )
    return Verdict(
        number=6,
        claim="Hard samples migrate with p",
        paper="Jaccard's index of p=-0.4 and p=0.3 is 0.35 on the test set and 0.125 on the train set (lr=0.01); no "
        "control",
        rule=RULE,
        measured=f"p=-0.4 and p=0.3 share, against two seeds of the same p: {told}",
        verdict=statistics.all_of(verdict_of(found[lr, split][2]) for lr in PAPERS_RATES for split in SPLITS),
        seeds=given.seeds,
        size=given.size,
        figures={
            f"lr={lr:g}, {split}": {
                "same p, other seed": str(same),
                "p=-0.4 and p=0.3, other seed": str(apart),
                "difference": str(difference),
                "p=-0.4 and p=0.3, same seed": str(
                    statistics.mean_of(overlaps(rows, lr, split, same_seed=True)[:, 0, -1].tolist())
                ),
                "adjacent p, same seed": str(
                    statistics.mean_of(
                        overlaps(rows, lr, split, same_seed=True).diagonal(1, axis1=1, axis2=2).mean(1).tolist()
                    )
                ),
            }
            for (lr, split), (same, apart, difference) in found.items()
        },
    )


def draw(rows: Sequence[Row], given: Options) -> None:
    """Fig. 5 as printed (same seed), and with different seeds, whose diagonal is the control."""
    rates = _fixed_p.learning_rates(given)
    ticks = [f"{p:g}" for p in EXPONENTS]
    with figures.panels(2 * len(SPLITS), len(rates), width=3.4, height=3.0) as (figure, grid):
        for column, lr in enumerate(rates):
            for row, (split, same_seed) in enumerate(itertools.product(SPLITS, (True, False))):
                axes = grid[row, column]
                values = overlaps(rows, lr, split, same_seed=same_seed).mean(0)
                image = axes.imshow(values, vmin=0, vmax=1, cmap="viridis")
                for i, j in itertools.product(range(len(ticks)), repeat=2):
                    colour = "white" if values[i, j] < 0.6 else "black"
                    axes.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", fontsize=5.5, color=colour)
                axes.set_xticks(range(len(ticks)), ticks, fontsize=7)
                axes.set_yticks(range(len(ticks)), ticks, fontsize=7)
                axes.grid(False)
                axes.set_title(f"{split}, lr = {lr:g}, {'same seed' if same_seed else 'different seeds'}", fontsize=9)
        figure.colorbar(image, ax=grid, label="Jaccard's index of the hardest 10 %", shrink=0.4)
        figures.save(figure, given.directory / "figure.png")


CLAIM = Claim(NAME, __doc__, _fixed_p.configurations, _fixed_p.run, judge, draw, _fixed_p.ROWS, _fixed_p.FULL_NEEDS)

if __name__ == "__main__":
    CLAIM.main()
