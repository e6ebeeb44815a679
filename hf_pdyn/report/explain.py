"""A run in sentences: what p is for this model, and what its user should know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hf_pdyn.policy import allocation_curve as curve
from hf_pdyn.policy.algorithm1 import BRANCHES
from hf_pdyn.policy.allocation_curve import PowerMoments
from hf_pdyn.policy.findings import Facts, Finding, equals_baseline, evaluation_noise, findings
from hf_pdyn.report.allocation_curves import AllocationCurves
from hf_pdyn.report.recorded_run import RecordedRun
from hf_pdyn.report.thinning import evenly

_MOMENTS_OF_A_RUN = 3
"""How many steps have a sentence: the first that was measured, the last, and one between."""


def findings_of(run: RecordedRun, baseline: RecordedRun | None = None) -> list[Finding]:
    """What its user should know, the most serious first; against a baseline, whether there is a difference."""
    facts = Facts(run.history, run.starts[-1] if run.starts else {}, ended=bool(run.finished))
    found = findings(facts)
    if baseline is not None:
        equal = equals_baseline(run.series("eval_loss").values, baseline.series("eval_loss").values)
        found += [equal] if equal is not None else []
    return found


def allocation_sentences(run: RecordedRun) -> list[str]:
    """What p made of the moments, at the beginning, in the middle and in the end of what was measured."""
    curves = AllocationCurves.of(run.allocation)
    steps = evenly(curves.steps, _MOMENTS_OF_A_RUN)
    found = [(step, curves.at(step), curves.p_at(step)) for step in steps]
    return [
        sentence
        for step, moments, p in found
        if p is not None and {"weight", "bias_like"} & moments.keys()
        for sentence in _sentence(step, moments, p)
    ]


def _sentence(step: int, moments: Mapping[str, PowerMoments], p: float) -> Iterator[str]:
    weight, bias_like = moments.get("weight"), moments.get("bias_like")
    whole = curve.total([part for part in (weight, bias_like) if part is not None])
    if not curve.P_MIN <= p <= curve.P_MAX:
        yield f"At step {step:,}, p = {p:g} lies beyond the allocation curve."
        return
    said = [_ratio(weight, bias_like, p)] if weight is not None and bias_like is not None else []
    if p == curve.ADAM:
        yield f"At step {step:,}, p = 0.5 is Adam's{''.join(f', and {ratio}' for ratio in said)}."
        return
    factor = curve.lr_factor(whole, p)
    size = f"{_times(factor)} times smaller" if factor >= 1 else f"{_times(1 / factor)} times larger"
    parts = [
        f"At step {step:,}, p = {p:g} makes raw updates {size} than Adam's",
        f"matched, its direction has cosine {curve.cosine(whole, p):.2f} with Adam's",
    ]
    yield f"{'; '.join(parts)}{''.join(f', and {ratio}' for ratio in said)}."


def _ratio(weight: PowerMoments, bias_like: PowerMoments, p: float) -> str:
    ratio, of_adam = (curve.update_ratio(weight, bias_like, at) for at in (p, curve.ADAM))
    beside = "" if p == curve.ADAM else f" ({_times(of_adam)} at p = 0.5)"
    return f"weights get {_times(ratio)} times the bias-like update{beside}"


def _times(factor: float) -> str:
    return f"{factor:.2g}" if factor < 100 else f"{factor:,.0f}"


def control_sentence(run: RecordedRun) -> str | None:
    """The path of p and the branches that decided; None for a run without decisions."""
    decided = run.decided
    if not decided:
        return None
    path = [row["p"] for row in decided]
    counts = Counter(row["branch"] for row in decided)
    branches = ", ".join(f"{counts[branch]} {branch}" for branch in BRANCHES if counts[branch])
    went = f"p went from {path[0]:.3g} to {path[-1]:.3g}, between {min(path):.3g} and {max(path):.3g}"
    return f"Algorithm 1 decided {len(decided)} times ({branches}); {went}."


def loss_difference(run: RecordedRun, baseline: RecordedRun) -> str | None:
    """How far the final evaluation losses are apart, and whether that is more than noise; None without both."""
    losses, others = run.series("eval_loss").values, baseline.series("eval_loss").values
    if not losses or not others:
        return None
    difference = losses[-1] - others[-1]
    said = f"{difference:+.2g}"
    noise = evaluation_noise(losses, others)
    if noise is None:
        return f"{said}; four evaluations of each run would tell whether that is noise"
    if abs(difference) <= noise:
        return f"{said}, no difference beyond evaluation noise of {noise:.1g}"
    return f"{said}, {'lower' if difference < 0 else 'higher'} by more than evaluation noise of {noise:.1g}"


def loss_sentence(run: RecordedRun, baseline: RecordedRun) -> str | None:
    """How both ended; None without evaluations of both."""
    difference = loss_difference(run, baseline)
    if difference is None:
        return None
    loss, other = (f"{of.series('eval_loss').values[-1]:.4g}" for of in (run, baseline))
    return f"The evaluation loss ended at {loss}, that of {baseline.name} at {other}: {difference}."


def baseline_among(runs: Sequence[RecordedRun]) -> RecordedRun | None:
    """The one run of several that kept Adam's p, or whose optimizer is an AdamW; None where none or several did."""
    found = [run for run in runs if _keeps_adam(run)]
    return found[0] if len(found) == 1 < len(runs) else None


def _keeps_adam(run: RecordedRun) -> bool:
    exponents = set(run.series("pdyn/p").values)
    arguments = run.starts[-1].get("training_arguments") if run.starts else None
    optim = str(arguments.get("optim")) if isinstance(arguments, Mapping) else ""
    return exponents == {curve.ADAM} if exponents else optim.startswith("adamw")


@dataclass(frozen=True)
class Explanation:
    """A run in words.

    outcome: what came of it, a sentence each: its loss against a baseline, what p made of the last moments, how p went.
    earlier: what p made of earlier moments.
    """

    run: RecordedRun
    outcome: list[str]
    earlier: list[str]
    findings: list[Finding]


def explain(run: RecordedRun, baseline: RecordedRun | None = None) -> Explanation:
    """Say what there is to say of a run."""
    allocation = allocation_sentences(run)
    loss = None if baseline is None else loss_sentence(run, baseline)
    outcome = [sentence for sentence in (loss, *allocation[-1:], control_sentence(run)) if sentence is not None]
    return Explanation(run, outcome, allocation[:-1], findings_of(run, baseline))
