"""Claim 6: which samples are hard depends on p (IAD 4.1.3, Fig. 5), against what two seeds of the same p share.

    python recipes/claim.py hard_samples

From the rows of claim 4, which are run first where they are missing. The hardest tenth of the train and of the test
set, by the loss after the last epoch, is compared by Jaccard's index. The paper compares p with p; but two seeds of
one p do not share all hard samples either. So pairs of runs always differ in their seed here, and the question is
whether two p share less with each other than either does with itself.

The paper's: as claim 4; the hardest tenth and Jaccard's index. Ours: as claim 4; pairs of different seeds.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_pdyn.measure.sample_loss import jaccard
from hf_pdyn.sweep import statistics
from hf_pdyn.sweep.outcome import ALL_RULE, Outcome, all_of
from papers._claims import figures
from papers._claims.claim import Claim
from papers._claims.options import Options
from papers._claims.rows import Row, chosen
from papers._claims.training import SPLITS
from papers._claims.verdict import Verdict
from papers.allocation import _fixed_p
from papers.allocation._fixed_p import EXPONENTS, PAPERS_RATES

BOUND = 0.05
RULE = f"""In both sets, at both of the paper's learning rates: Jaccard's index of runs with p=-0.4 and p=0.3 (and
different seeds) is below that of two runs with p=-0.4, and below that of two runs with p=0.3. Over pairs of seeds; as
these have seeds in common, the interval is that of as many values as there are seeds. Bound: {BOUND:g}. {ALL_RULE}
{statistics.EFFECT_RULE}"""


@dataclass(frozen=True)
class Migration:
    """Jaccard's index of the hard samples of the two most distant p, with different seeds.

    apart: of one p with the other. small, large: of each with itself. below: by how much `apart` is below those two.
    """

    apart: statistics.Mean
    small: statistics.Mean
    large: statistics.Mean
    below: tuple[statistics.Mean, statistics.Mean]

    @property
    def outcome(self) -> Outcome:
        """By RULE, of one set at one learning rate."""
        return all_of(statistics.effect(below, BOUND) for below in self.below)


def hard_sets(rows: Sequence[Row], lr: float, split: str) -> dict[tuple[float, int], list[int]]:
    """By p and seed."""
    return {
        (row["configuration"]["p"], row["configuration"]["seed"]): row["result"]["hard"][split]
        for row in chosen(rows, lr=lr)
    }


def overlaps(rows: Sequence[Row], lr: float, split: str, *, same_seed: bool) -> np.ndarray:
    """Jaccard's index of every p with every p, (pairs of seeds, p, p): of equal seeds, or of any two different ones."""
    hard = hard_sets(rows, lr, split)
    seeds = sorted({seed for _, seed in hard})
    pairs = [(seed, seed) for seed in seeds] if same_seed else list(itertools.combinations(seeds, 2))
    found = np.array(
        [[[jaccard(hard[p, one], hard[q, other]) for q in EXPONENTS] for p in EXPONENTS] for one, other in pairs]
    )
    return found if same_seed else (found + found.transpose(0, 2, 1)) / 2


def migration(rows: Sequence[Row], lr: float, split: str) -> Migration:
    """Over pairs of seeds."""
    found = overlaps(rows, lr, split, same_seed=False)
    apart, small, large = found[:, 0, -1], found[:, 0, 0], found[:, -1, -1]
    seeds = len({row["configuration"]["seed"] for row in rows})
    over_pairs = [statistics.mean_of(values) for values in (apart, small, large, small - apart, large - apart)]
    apart, small, large, *below = (dataclasses.replace(one, n=seeds) for one in over_pairs)
    return Migration(apart, small, large, tuple(below))


def by_chance(rows: Sequence[Row], split: str) -> float:
    """Jaccard's index of two random sets as large as the hard ones, which share hard^2 / samples in the mean."""
    hard, samples = len(rows[0]["result"]["hard"][split]), rows[0]["result"]["samples"][split]
    shared = hard**2 / samples
    return shared / (2 * hard - shared)


def judge(rows: Sequence[Row], given: Options) -> Verdict:
    """By RULE."""
    found = {(lr, split): migration(rows, lr, split) for lr in _fixed_p.learning_rates(given) for split in SPLITS}
    told = "; ".join(
        f"{split} at lr={lr:g} {one.apart.mean:.2f} ({one.small.mean:.2f}, {one.large.mean:.2f}: {one.outcome})"
        for (lr, split), one in found.items()
    )
    return Verdict(
        number=6,
        claim="Hard samples migrate with p",
        paper="Jaccard's index of p=-0.4 and p=0.3 is 0.35 on the test set and 0.125 on the train set (lr=0.01); no "
        "control",
        measured=f"Jaccard's index of p=-0.4 and p=0.3 (of two seeds with p=-0.4, with p=0.3): {told}; by chance "
        f"{by_chance(rows, 'test'):.2f}",
        verdict=all_of(found[lr, split].outcome for lr in PAPERS_RATES for split in SPLITS),
        reason="Runs that have learned little agree on their hard samples hardly more than by chance, whatever p is; "
        f"and a tenth of this train set is {len(rows[0]['result']['hard']['train'])} samples.",
        figures={
            f"lr={lr:g}, {split}": {
                "p=-0.4 and p=0.3, other seed": str(one.apart),
                "below that of p=-0.4 with itself": str(one.below[0]),
                "below that of p=0.3 with itself": str(one.below[1]),
                **_figures(rows, lr, split),
            }
            for (lr, split), one in found.items()
        },
    )


def _figures(rows: Sequence[Row], lr: float, split: str) -> dict[str, object]:
    same, other = (overlaps(rows, lr, split, same_seed=same_seed) for same_seed in (True, False))
    return {
        "same p, other seed": statistics.means_by_p(EXPONENTS, other.diagonal(axis1=1, axis2=2).T),
        "p=-0.4 and p=0.3, same seed": str(statistics.mean_of(same[:, 0, -1])),
        "adjacent p, same seed": str(statistics.mean_of(same.diagonal(1, axis1=1, axis2=2).mean(1))),
        "adjacent p, other seed": str(statistics.mean_of(other.diagonal(1, axis1=1, axis2=2).mean(1))),
    }


def draw(rows: Sequence[Row], given: Options) -> None:
    """Fig. 5 (same seed) and the control, whose diagonal is what two seeds of one p share; numbers are of corners."""
    rates, last = _fixed_p.learning_rates(given), len(EXPONENTS) - 1
    ticks = range(0, last + 1, 2), [f"{p:g}" for p in EXPONENTS[::2]]
    kinds = {"same seed": True, "control:\ndifferent seeds": False}
    with figures.panels(2 * len(SPLITS), len(rates), height=1.75, sharex=True, sharey=True) as (figure, grid):
        for panels, (kind, split) in zip(grid, itertools.product(kinds, SPLITS), strict=True):
            for axes, lr in zip(panels, rates, strict=True):
                values = overlaps(rows, lr, split, same_seed=kinds[kind]).mean(0)
                image = axes.imshow(values, vmin=0, vmax=1, cmap="viridis")
                for i, j in ((0, last),) if kinds[kind] else ((0, 0), (0, last), (last, last)):
                    side = "right" if j else "left"
                    axes.text(j + (0.4 if j else -0.4), i, f"{values[i, j]:.2f}", ha=side, va="center", color="white")
                axes.set_xticks(*ticks)
                axes.set_yticks(*ticks)
                axes.grid(False)
            panels[0].set_ylabel(f"{split}, {kind}")
        for axes, lr in zip(grid[0], rates, strict=True):
            axes.set_title(f"lr = {lr:g}")
        for axes in grid[-1]:
            axes.set_xlabel("p")
        figure.colorbar(image, ax=grid, label="Jaccard's index of the hardest 10 %", location="bottom", shrink=0.5)
        figures.save(figure, given.directory / "figure.png")


CLAIM = Claim(
    __name__, __doc__, RULE, _fixed_p.configurations, _fixed_p.run, judge, draw, _fixed_p.folder_of, _fixed_p.OPTIONS
)
