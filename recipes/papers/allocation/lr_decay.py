"""Claim 7: as the learning rate decays, the bias gradient falls faster and G_w/G_b rises (IAD 4.1.4).

    python recipes/claim.py lr_decay

Some runs of claim 4 have cosine decay; the same ones with a constant learning rate show how much of a rise is the
decay's. Late in training the decay also lowers the loss, and with it all gradients; so the two are compared at equal
training loss, too. The gradient of the whole train set shows what the noise of small batches adds.

The paper's: cosine annealing. Ours: as claim 4; the constant learning rate, half of training as "late", and all
comparisons.
"""

import math
from collections.abc import Sequence

import numpy as np

from hf_pdyn.sweep import statistics
from hf_pdyn.sweep.outcome import ALL_RULE, Outcome, all_of
from papers._claims import figures
from papers._claims.options import Options
from papers._claims.rows import Configuration, Result, Row, chosen
from papers._claims.verdict import Part, Verdict
from papers.allocation import _fixed_p
from papers.allocation._fixed_p import by_p, usual

SCHEDULES = ("cosine", "constant")
FACTOR = 1.05
BOUND = math.log(FACTOR)
RULE = f"""The rise is the logarithm of the last epoch's G_w/G_b over that at half of training, mean over p (the
smallest, 0, the largest). At both learning rates it is above zero under cosine decay; and from half of training on the
logarithm of G_w/G_b under cosine decay is above that under a constant learning rate at equal training loss: in each
epoch whose mean loss the constant run has too, by linear interpolation over the logarithms of its epochs' losses, mean
over these epochs and p. Bound: a factor of {FACTOR:g}. Parts, at both learning rates. same step: the rise under cosine
decay is above that under a constant learning rate. whole set: the rise of the ratio of norms of the gradient of the
whole train set, without the noise of small batches, is above zero under cosine decay, and above that under a constant
learning rate. {ALL_RULE} {statistics.EFFECT_RULE}"""


def configurations(given: Options) -> list[Configuration]:
    """Some p, at every learning rate, under both schedules."""
    return [
        one
        for schedule in SCHEDULES[::-1]
        for one in _fixed_p.configurations(given, exponents=_fixed_p.extremes(given), lr_scheduler=schedule)
    ]


def rise(result: Result) -> float | None:
    """Log of G_w/G_b at the end over that at half of training; None where either is missing."""
    curve = result["curves"]["G_w_over_G_b"]
    middle, end = curve[len(curve) // 2 - 1], curve[-1]
    return math.log(end / middle) if middle and end else None


def rise_of_whole_set(result: Result) -> float | None:
    """The same of the gradient of the whole train set."""
    at = sorted(result["measured"], key=int)
    half = min(at, key=lambda epoch: abs(int(epoch) - int(at[-1]) / 2))
    middle, end = (result["measured"][epoch]["of_whole_set"]["G_w_over_G_b"] for epoch in (half, at[-1]))
    return math.log(end / middle) if middle and end else None


def of_schedule(rows: Sequence[Row], lr: float, schedule: str, exponents: Sequence[float]) -> list[Row]:
    found = usual(rows, lr=lr, lr_scheduler=schedule)
    return [row for row in found if row["configuration"]["p"] in exponents]


def at_equal_loss(cosine: Result, constant: Result) -> float:
    """Mean log of G_w/G_b under cosine decay over that under a constant learning rate; NaN without common losses."""
    (loss, ratio), (other_loss, other_ratio) = (_logs(result) for result in (cosine, constant))
    late = slice(len(loss) // 2, None)
    loss, ratio = loss[late], ratio[late]
    order = np.argsort(other_loss)
    inside = (loss >= other_loss.min()) & (loss <= other_loss.max())
    if not inside.any():
        return math.nan
    return float((ratio - np.interp(loss, other_loss[order], other_ratio[order]))[inside].mean())


def _logs(result: Result) -> tuple[np.ndarray, np.ndarray]:
    pairs = np.array([result["curves"][name] for name in ("loss", "G_w_over_G_b")], float)
    found = np.log(np.where(pairs > 0, pairs, np.nan))
    return found[0], found[1]


def judge(rows: Sequence[Row], given: Options) -> Verdict:
    """By RULE."""
    rates, exponents = _fixed_p.rates(given, "raw"), _fixed_p.extremes(given)
    of = {(lr, schedule): of_schedule(rows, lr, schedule, exponents) for lr in rates for schedule in SCHEDULES}
    rises = {key: by_p(found, rise).mean(0) for key, found in of.items()}
    whole = {key: by_p(found, rise_of_whole_set).mean(0) for key, found in of.items()}
    equal = {lr: _equal_loss(of[lr, "cosine"], of[lr, "constant"], exponents) for lr in rates}
    main = {lr: [_effect(rises[lr, "cosine"]), _effect(equal[lr])] for lr in rates}
    same = {lr: _effect(rises[lr, "cosine"] - rises[lr, "constant"]) for lr in rates}
    of_whole = {
        lr: [_effect(whole[lr, "cosine"]), _effect(whole[lr, "cosine"] - whole[lr, "constant"])] for lr in rates
    }
    return Verdict(
        number=7,
        claim="Learning-rate decay raises G_w/G_b late in training",
        paper="under cosine decay both gradients fall, the bias's faster, so that G_w/G_b often rises late",
        measured="from half of training to its end under cosine decay, mean over p: "
        + "; ".join(
            f"{_factor(rises[lr, 'cosine'])} at lr={lr:g} ({main[lr][0]}), and at equal loss {_factor(equal[lr])} that "
            f"under a constant one ({main[lr][1]})"
            for lr in rates
        ),
        verdict=all_of(outcome for found in main.values() for outcome in found),
        reason=f"{_fixed_p.data_of(rows)}, batches of {given['batch_size']}. {_both_gradients(of, rates)}",
        parts={
            "more than a constant learning rate at the same step": Part(
                all_of(same.values()),
                "; ".join(
                    f"{_factor(rises[lr, 'constant'])} under a constant one at lr={lr:g} ({same[lr]})" for lr in rates
                ),
            ),
            "gradient of the whole set": Part(
                all_of(outcome for found in of_whole.values() for outcome in found),
                "; ".join(
                    f"{_factor(whole[lr, 'cosine'])} at lr={lr:g} ({of_whole[lr][0]}), "
                    f"{_factor(whole[lr, 'constant'])} under a constant one (more than that: {of_whole[lr][1]})"
                    for lr in rates
                ),
            ),
        },
        figures={
            f"lr={lr:g}": {
                f"log rise under {schedule}": statistics.means_by_p(exponents, by_p(of[lr, schedule], rise))
                for schedule in SCHEDULES
            }
            for lr in rates
        },
    )


def _equal_loss(cosine: Sequence[Row], constant: Sequence[Row], exponents: Sequence[float]) -> np.ndarray:
    """Mean over p, by seed."""
    by_exponent = [
        [
            at_equal_loss(one["result"], other["result"])
            for one, other in zip(chosen(cosine, p=p), chosen(constant, p=p), strict=True)
        ]
        for p in exponents
    ]
    return np.array(by_exponent).mean(0)


def _effect(values: np.ndarray) -> Outcome:
    return statistics.effect(statistics.mean_of(values), BOUND)


def _factor(values: np.ndarray) -> str:
    found = statistics.mean_of(values)
    return f"{math.exp(found.mean):.2f} ± {math.exp(found.mean) * found.spread:.2f} x"


def _both_gradients(of: dict[tuple[float, str], list[Row]], rates: Sequence[float]) -> str:
    """How each gradient changes in the second half, which the paper's explanation is about."""
    told = []
    for lr in rates:
        ends = {name: [] for name in ("D_w", "D_b")}  # type: dict[str, list[float]]
        for row in of[lr, "cosine"]:
            for name, found in ends.items():
                curve = row["result"]["curves"][name]
                found.append(math.log((curve[-1] or math.nan) / (curve[len(curve) // 2 - 1] or math.nan)))
        told.append(
            " and ".join(f"{math.exp(float(np.mean(found))):.2f} x" for found in ends.values()) + f" at lr={lr:g}"
        )
    return f"Under cosine decay D_w and D_b change in the second half by {', '.join(told)}."


def draw(rows: Sequence[Row], given: Options) -> None:
    """G_w/G_b over epochs under both schedules; and over training loss, where the same loss is compared."""
    rates, exponents = _fixed_p.rates(given, "raw"), _fixed_p.extremes(given)
    with figures.panels(len(rates), 2, height=2.6) as (figure, grid):
        for (over_epochs, over_loss), lr in zip(grid, rates, strict=True):
            for p, colour in zip(exponents, figures.colours(len(exponents)), strict=True):
                for schedule, line in zip(SCHEDULES, ("-", "--"), strict=True):
                    of_p = of_schedule(rows, lr, schedule, [p])
                    logs = np.array([_logs(row["result"]) for row in of_p]).mean(0)
                    epochs = _fixed_p.epochs_of(of_p)
                    label = f"p = {p:g}" if schedule == "cosine" else None
                    over_epochs.plot(epochs, np.exp(logs[1]), line, color=colour, label=label)
                    over_loss.plot(np.exp(logs[0]), np.exp(logs[1]), line, color=colour)
            over_epochs.set(title=f"lr = {lr:g}", xlabel="epoch", ylabel="G_w / G_b", ylim=(0, None))
            over_loss.set(title=f"lr = {lr:g}", xlabel="training loss, falling", ylim=(0, None))
            figures.logarithmic(over_loss, "x")
            over_loss.invert_xaxis()
        grid[0, 0].plot([], [], color="0.5", linestyle="--", label="constant learning rate (control)")
        figures.legend(figure)
        figures.save(figure, given.directory / "figure.png")


CLAIM = _fixed_p.claim(__name__, __doc__, RULE, configurations, judge, draw)
