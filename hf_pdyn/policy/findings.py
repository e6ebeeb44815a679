"""What a run's records show that its user should know: a number, the threshold that it passed, and the cure.

Pure: a run is its log records and the configuration it was started with, read from a directory or as it trains.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from hf_pdyn.common.numbers import is_number

_FEWEST_RECORDS = 5
"""Below it no finding is made of what happens in most records."""


@dataclass(frozen=True)
class Finding:
    """One finding.

    kind: its name, as in FINDINGS. text: what was seen, a sentence without its end. cure: what to do, likewise.
    value, threshold: the number that was seen, and the one that it passed.
    """

    kind: str
    text: str
    cure: str
    value: float
    threshold: float

    def __str__(self) -> str:
        """Return two sentences."""
        return f"{self.text}. {self.cure}."


@dataclass(frozen=True)
class Facts:
    """A run as far as it has come.

    records: of training, in order, numbers by metric. start: as in `run.json`. ended: whether training is over; some
    findings are of whole runs only.
    """

    records: Sequence[Mapping[str, Any]]
    start: Mapping[str, Any]
    ended: bool

    def values(self, name: str) -> list[float]:
        """A metric's values, in the order of records."""
        return [record[name] for record in self.records if is_number(record.get(name))]

    def last(self, name: str) -> float | None:
        """A metric's last value."""
        values = self.values(name)
        return values[-1] if values else None

    def late(self, name: str) -> list[float]:
        """The later half of a metric's values; none of too few."""
        values = self.values(name)
        return values[len(values) // 2 :] if len(values) >= _FEWEST_RECORDS else []

    def names(self) -> list[str]:
        """All metrics."""
        return list(dict.fromkeys(name for record in self.records for name in record))

    def callback(self, name: str) -> Mapping[str, Any] | None:
        """The settings of the callback of that class."""
        callbacks = self.start.get("callbacks")
        found = (c for c in callbacks if isinstance(c, Mapping)) if isinstance(callbacks, Sequence) else ()
        return next((callback for callback in found if callback.get("name") == name), None)

    def argument(self, name: str) -> Any:
        """One of the Trainer's arguments."""
        arguments = self.start.get("training_arguments")
        return arguments.get(name) if isinstance(arguments, Mapping) else None


def findings(facts: Facts) -> list[Finding]:
    """All findings of a run, in the order of FINDINGS."""
    return [finding for detect in FINDINGS.values() if (finding := detect(facts)) is not None]


def _nonfinite(facts: Facts) -> Finding | None:
    steps = facts.last("pdyn/nonfinite_steps") or 0
    if not steps:
        return None
    skipped = facts.last("pdyn/skipped_steps") or 0
    if _lately_all_nonfinite(facts):
        cure = (
            "All of the last steps had: the weights hold some by now. Go back to a checkpoint from before, and look at "
            "the learning rate, p and eps of the first such step"
        )
    elif skipped >= steps:
        cure = "Look for the batch or the layer that makes them"
    else:
        cure = "Look for the batch or the layer that makes them; --nonfinite skip has padam leave such steps out"
    text = f"{steps:,.0f} step{' had' if steps == 1 else 's had'} a gradient with NaN or infinity"
    return Finding("nonfinite", text, cure, steps, 0)


def _lately_all_nonfinite(facts: Facts) -> bool:
    """Whether every step of the last record was non-finite, and the optimizer took them all."""
    nonfinite, skipped = (facts.values(f"pdyn/{name}_steps")[-2:] for name in ("nonfinite", "skipped"))
    steps = facts.last("pdyn/steps")
    if steps is None or len(nonfinite) < 2 or (skipped and skipped[-1] > skipped[0]):
        return False
    return nonfinite[1] - nonfinite[0] >= steps > 0


_CLIPPED, _SHARE_OF_RECORDS = 0.99, 0.95


def _always_clipped(facts: Facts) -> Finding | None:
    norms, factors = [], []
    for record in facts.records:
        before, after = (_norm(record, suffix) for suffix in ("", "_clipped"))
        if before is not None and after is not None and before > 0:
            norms.append(before)
            factors.append(after / before)
    if len(factors) < _FEWEST_RECORDS:
        return None
    share = sum(factor < _CLIPPED for factor in factors) / len(factors)
    if share < _SHARE_OF_RECORDS:
        return None
    limit = facts.argument("max_grad_norm")
    raised = f" from {limit:g}" if isinstance(limit, int | float) else ""
    return Finding(
        "always_clipped",
        f"Gradients were clipped in {share:.0%} of the records, by a factor of {statistics.median(factors):.2g} in the "
        "median",
        f"Every step has the size of the limit: raise --max_grad_norm{raised} above {statistics.median(norms):.2g}, or "
        "mean it so",
        share,
        _SHARE_OF_RECORDS,
    )


def _norm(record: Mapping[str, Any], suffix: str) -> float | None:
    names = (f"pdyn/D_w{suffix}", f"pdyn/D_b{suffix}")
    parts = [record[name] for name in names if is_number(record.get(name))]
    return math.hypot(*parts) if parts else None


_CONTROLS = {"PControlCallback": "pdyn/control/p", "PTargetCallback": "pdyn/target/p"}


def _controlled(facts: Facts) -> tuple[Mapping[str, Any], list[float]] | None:
    """The limits and the decisions of whatever moves p."""
    for name, metric in _CONTROLS.items():
        callback = facts.callback(name)
        config = (callback or {}).get("config")
        if isinstance(config, Mapping):
            return config, facts.values(metric)
    return None


_FEWEST_DECISIONS = 4


def _p_never_moved(facts: Facts) -> Finding | None:
    controlled = _controlled(facts)
    if controlled is None or len(controlled[1]) < _FEWEST_DECISIONS or not facts.ended:
        return None
    decided = controlled[1]
    if len(set(decided)) > 1:
        return None
    return Finding(
        "p_never_moved",
        f"Control took {len(decided)} logged decisions, and p stayed at {decided[0]:g}",
        "Choose shorter intervals (--p_interval) if the norms were still moving, or train without control",
        0,
        0,
    )


_AT_LIMIT = 0.75


def _p_at_its_limit(facts: Facts) -> Finding | None:
    controlled = _controlled(facts)
    if controlled is None or len(controlled[1]) < _FEWEST_DECISIONS:
        return None
    config, decided = controlled
    late = decided[len(decided) // 2 :]
    for name in ("p_min", "p_max"):
        limit = config.get(name)
        share = sum(p == limit for p in late) / len(late)
        if share >= _AT_LIMIT and len(set(decided)) > 1:
            return Finding(
                "p_at_its_limit",
                f"In {share:.0%} of the later decisions p was at its limit, {name}={limit:g}",
                f"Move --{name} if p shall go further, or train at that p without control",
                share,
                _AT_LIMIT,
            )
    return None


def _no_bias_gradient(facts: Facts) -> Finding | None:
    if len(facts.values("pdyn/D_w")) < _FEWEST_RECORDS or facts.values("pdyn/D_b"):
        return None
    return Finding(
        "no_bias_gradient",
        "No bias-like parameter is trained: there is no D_b, no ratio of updates, nothing for control to compare",
        'With LoRA, train biases (bias="all") or norms (modules_to_save) too, if the split matters',
        0,
        0,
    )


def _noisy_control(facts: Facts) -> Finding | None:
    """The noise of D_b over an interval, from the differences of neighbouring records, which a trend hardly moves."""
    callback = facts.callback("PControlCallback")
    config = (callback or {}).get("config")
    steps = (callback or {}).get("interval_steps")
    norms = facts.values("pdyn/D_b")
    if not isinstance(config, Mapping) or not isinstance(steps, int) or len(norms) < _FEWEST_RECORDS:
        return None
    covered = statistics.median(facts.values("pdyn/steps") or [steps])
    differences = [later - earlier for earlier, later in pairwise(norms)]
    spread = statistics.stdev(differences) / math.sqrt(2) / statistics.fmean(norms) if statistics.fmean(norms) else 0.0
    noise = spread * math.sqrt(covered / steps)
    most = (config.get("threshold", 1.2) - 1) / 2
    if noise <= most:
        return None
    return Finding(
        "noisy_control",
        f"D_b over {steps} steps, an interval, is known to {noise:.0%} only; a rebound is a rise of {2 * most:.0%}",
        f"Decisions follow noise: choose intervals of {math.ceil(steps * (noise / most) ** 2)} steps or more "
        "(--p_interval), or a larger --p_threshold",
        noise,
        most,
    )


_NO_SHARE = 1e-12


def _adapter_without_gradient(facts: Facts) -> Finding | None:
    shares = {
        component: facts.late(f"pdyn/by_label/weight/{component}/grad_share") for component in ("lora_A", "lora_B")
    }
    for component, late in shares.items():
        if late and max(late) <= _NO_SHARE:
            return Finding(
                "adapter_without_gradient",
                f"{component} had no gradient: at most {max(late):.1g} of the squared norm",
                "Check that the adapter is active in the forward pass, and with gradient checkpointing call "
                "model.enable_input_require_grads()",
                max(late),
                _NO_SHARE,
            )
    return None


_CORRECTS_WEIGHTS = re.compile(r"weight_correction\s*=\s*(true|1|yes)\b", re.IGNORECASE)
_SPACING = {"bfloat16": 2.0**-8, "float16": 2.0**-11}


def _updates_round_to_nothing(facts: Facts) -> Finding | None:
    """An update below half the spacing of its parameter's numbers is lost; judged by root mean squares."""
    if _CORRECTS_WEIGHTS.search(str(facts.argument("optim_args"))):
        return None  # what is rounded away is kept
    model = facts.start.get("model")
    dtypes = model.get("trainable_dtypes") if isinstance(model, Mapping) else None
    spacing = max((_SPACING.get(str(dtype), 0.0) for dtype in dtypes or ()), default=0.0)
    if not spacing:
        return None
    for pathway in ("weight", "bias_like"):
        pairs = zip(facts.late(f"pdyn/update_norm/{pathway}"), facts.late(f"pdyn/param_norm/{pathway}"), strict=False)
        ratios = [update / param for update, param in pairs if param > 0]
        if ratios and statistics.median(ratios) < spacing / 2:
            return Finding(
                "updates_round_to_nothing",
                f"Updates of {pathway} parameters were {statistics.median(ratios):.1g} of them, less than half the "
                f"spacing of their numbers ({spacing:.1g}): most are rounded to nothing",
                'Have padam keep what rounding leaves (--optim_args "weight_correction=true"), train parameters in '
                "float32 (with --bf16 for the arithmetic), or raise the learning rate",
                statistics.median(ratios),
                spacing / 2,
            )
    return None


_MUCH_EPS = 0.5


def _eps_rules(facts: Facts) -> Finding | None:
    for pathway in ("weight", "bias_like"):
        late = facts.late(f"pdyn/eps_share/{pathway}")
        if late and statistics.median(late) > _MUCH_EPS:
            share = statistics.median(late)
            return Finding(
                "eps_rules",
                f"eps makes {share:.0%} of the denominator of {pathway} parameters: there p is little more than a "
                "learning rate",
                "Lower --adam_epsilon (eps is its square, and stands beside v_hat)",
                share,
                _MUCH_EPS,
            )
    return None


_MUCH_DECAY = 0.01


def _decay_never_off(facts: Facts) -> Finding | None:
    decay, time = facts.values("pdyn/weight_decay"), facts.last("pdyn/a_t")
    if not facts.ended or len(decay) < _FEWEST_RECORDS or time is None or min(decay) <= 0 or -time < _MUCH_DECAY:
        return None
    shutoff = facts.callback("WeightDecayShutoffCallback")
    if shutoff is not None and shutoff.get("labels"):  # the others decay as they are meant to
        return None
    if shutoff is None:
        cure = "What it did to the implicit bias lasts after a shutoff: try --wd_off 0.5"
    else:
        cure = "The shutoff's moment or target did not come: name a nearer one, such as --wd_off 0.5"
    return Finding(
        "decay_never_off",
        f"Weight decay was never switched off, and a_t came to {time:.2g}",
        cure,
        -time,
        _MUCH_DECAY,
    )


FINDINGS: dict[str, Callable[[Facts], Finding | None]] = {
    "nonfinite": _nonfinite,
    "always_clipped": _always_clipped,
    "adapter_without_gradient": _adapter_without_gradient,
    "updates_round_to_nothing": _updates_round_to_nothing,
    "eps_rules": _eps_rules,
    "no_bias_gradient": _no_bias_gradient,
    "noisy_control": _noisy_control,
    "p_never_moved": _p_never_moved,
    "p_at_its_limit": _p_at_its_limit,
    "decay_never_off": _decay_never_off,
}
"""What is looked for, the most serious first."""

EQUALS_BASELINE = "equals_baseline"
KINDS = (*FINDINGS, EQUALS_BASELINE)

_LAST_EVALUATIONS = 5


def evaluation_noise(losses: Sequence[float], of_baseline: Sequence[float]) -> float | None:
    """Twice what the scatter of each run's last evaluation losses about their line makes of a difference.

    None of fewer than four evaluations.
    """
    scatters = [_scatter(values[-_LAST_EVALUATIONS:]) for values in (losses, of_baseline)]
    known = [scatter for scatter in scatters if scatter is not None]
    return 2 * math.hypot(*known) if len(known) == len(scatters) else None


def equals_baseline(losses: Sequence[float], of_baseline: Sequence[float]) -> Finding | None:
    """A finding where the final losses of two runs differ by no more than `evaluation_noise`, else None."""
    noise = evaluation_noise(losses, of_baseline)
    if noise is None:
        return None
    difference = losses[-1] - of_baseline[-1]
    if abs(difference) > noise:
        return None
    return Finding(
        EQUALS_BASELINE,
        f"The evaluation loss ends {difference:+.2g} from its baseline's, and evaluations scatter by {noise:.1g}",
        "Nothing shows a difference: compare several seeds, or train longer, before you believe in one",
        abs(difference),
        noise,
    )


def _scatter(values: Sequence[float]) -> float | None:
    """The standard deviation about the line through the values, with two degrees of freedom less."""
    if len(values) < 4:
        return None
    slope, intercept = statistics.linear_regression(range(len(values)), values)
    rest = [value - intercept - slope * i for i, value in enumerate(values)]
    return math.sqrt(sum(value**2 for value in rest) / (len(values) - 2))
