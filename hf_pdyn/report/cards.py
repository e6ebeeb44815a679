"""What matters of a run as cards: its loss, where its update goes, and p. Words come before symbols."""

from __future__ import annotations

from dataclasses import dataclass

from hf_pdyn.policy.allocation_curve import ADAM
from hf_pdyn.report.explain import loss_difference
from hf_pdyn.report.recorded_run import RecordedRun
from hf_pdyn.report.shares import percent, shares


@dataclass(frozen=True)
class Card:
    """A number in large type. title: what it is. value: as text. words: what it means, a sentence without its end."""

    title: str
    value: str
    words: str


def cards_of(run: RecordedRun, baseline: RecordedRun | None) -> list[Card]:
    """The cards of a run, those for which it has a number. baseline: another run, None where there is none."""
    found = (_loss(run, baseline), _update(run, baseline), _exponent(run))
    return [card for card in found if card is not None]


def _loss(run: RecordedRun, baseline: RecordedRun | None) -> Card | None:
    evaluated = bool(len(run.series("eval_loss")))
    series = run.series("eval_loss" if evaluated else "loss")
    if not len(series):
        return None
    title = "Evaluation loss" if evaluated else "Training loss"
    difference = None if baseline is None else loss_difference(run, baseline)
    if baseline is not None and difference is not None:
        last = baseline.series("eval_loss").values[-1]
        return Card(title, f"{series.values[-1]:.4g}", f"that of {baseline.name} is {last:.4g}: {difference}")
    best = min(series.values)
    at = series.steps[series.values.index(best)]
    return Card(
        title,
        f"{series.values[-1]:.4g}",
        f"from {series.values[0]:.4g} at step {series.steps[0]:,}; smallest {best:.4g} at step {at:,}",
    )


def _update(run: RecordedRun, baseline: RecordedRun | None) -> Card | None:
    """The weights' part of the update, beside that of the gradient and of the baseline."""
    runs = [run] if baseline is None else [run, baseline]
    weight = next((line for line in shares(runs) if line.name == "weight"), None)
    if weight is None or weight.update[0] is None:
        return None
    gradient = _unbroken(percent(weight.gradient[0]))
    words = f"of the update goes to weights, the rest to bias-like parameters; of the gradient {gradient}"
    if baseline is not None and weight.update[1] is not None:
        words += f"; {baseline.name}: {_unbroken(percent(weight.update[1]))} of the update"
    return Card("Allocation", _unbroken(percent(weight.update[0])), words)


def _unbroken(text: str) -> str:
    """The text with spaces at which no line is broken."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _exponent(run: RecordedRun) -> Card | None:
    values = run.series("pdyn/p").values
    if not values:
        return None
    low, high = min(values), max(values)
    if low == high:
        words = "all the time, which is Adam" if low == ADAM else "all the time; Adam has 0.5"
    else:
        words = f"in the end; between {low:.3g} and {high:.3g} before, and Adam has 0.5"
        if run.decided:
            words = f"{words}; {len(run.decided)} decisions of Algorithm 1"
    return Card("Exponent p", f"{values[-1]:.3g}", words)
