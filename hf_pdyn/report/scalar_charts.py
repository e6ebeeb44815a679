"""Charts of the numbers of the log records, over steps."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass

from hf_pdyn.common.label_names import PATHWAYS
from hf_pdyn.report import vega
from hf_pdyn.report.chart import Chart, Drawing, file_name
from hf_pdyn.report.recorded_run import STEPS
from hf_pdyn.report.thinning import thin
from hf_pdyn.report.vega import Line, Stepped

_POINTS_OF_A_CHART = 4000
_POINTS_OF_A_LINE = (60, 1000)
_OTHER_CHARTS = 24

_COUNTS = ("skipped_steps", "nonfinite_steps")
_PARTIAL = "Hollow: a record of fewer steps than its neighbour, such as a run's last."
_OF_A_PATHWAY = re.compile(r"pdyn/by_label/[^/]+/[^/]+")
_MADE_OF_RUNS = re.compile(r"(_runtime|_per_second|_flos)$")


@dataclass(frozen=True)
class Scalars:
    """A chart of numbers of the log records; `metrics` by what tells them apart in the chart.

    stepped: of what changes at steps only, whether a value holds before or after its record. noisy: whether a smoothed
    line says more.
    """

    key: str
    title: str
    y_title: str
    metrics: dict[str, str]
    note: str = ""
    stepped: Stepped | None = None
    logarithmic: bool | None = None
    noisy: bool = True


def _stepped(metric: str) -> Stepped | None:
    """A setting keeps its value between two records, and a record has that of its last step; a count does so too."""
    return "before" if metric.rpartition("/")[2] in ("p", "weight_decay", *_COUNTS) else None


def _by_pathway(metric: str) -> dict[str, str]:
    return {pathway: f"{metric}/{pathway}" for pathway in PATHWAYS}


BALANCE = (
    Scalars(
        "p", "Exponent p", "p", {"": "pdyn/p"}, "1/2 is Adam, 0 is momentum SGD.", stepped="before", logarithmic=False
    ),
    Scalars(
        "gradients",
        "Gradient norms D_w and D_b",
        "L2 norm before clipping",
        {"D_w": "pdyn/D_w", "D_b": "pdyn/D_b"},
        "Means over the steps of a log record (Eq. 31).",
    ),
    Scalars(
        "gradient_ratio",
        "Gradient balance G_w / G_b",
        "D_w / D_b",
        {"G_w / G_b": "pdyn/G_w_over_G_b", "scale-invariant": "pdyn/G_w_over_G_b_invariant"},
        "Scale-invariant: with each weight's gradient times its norm, so that growing weights before a normalisation "
        "do not show.",
    ),
)
LEARNING = (
    Scalars("loss", "Training loss", "loss", {"": "loss"}),
    Scalars("eval_loss", "Evaluation loss", "loss", {"": "eval_loss"}, noisy=False),
    Scalars("learning_rate", "Learning rate", "learning rate", {"": "learning_rate"}, logarithmic=False, noisy=False),
    Scalars("grad_norm", "Gradient norm of all parameters", "L2 norm", {"": "grad_norm"}, "As the Trainer logs it."),
)
UPDATES = (
    Scalars("update_norm", "Update norms", "L2 norm", _by_pathway("pdyn/update_norm")),
    Scalars("update_ratio", "Update balance", "weight / bias_like", {"": "pdyn/update_ratio"}),
    Scalars("param_norm", "Parameter norms", "L2 norm", _by_pathway("pdyn/param_norm")),
    Scalars("v_hat_mean", "Second moments", "mean of v̂", _by_pathway("pdyn/v_hat_mean")),
    Scalars(
        "eps_share",
        "Share of eps in the denominator",
        "mean of ε / (v̂ + ε)",
        _by_pathway("pdyn/eps_share"),
        "Near 1, eps rules the denominator, and p is a learning rate.",
    ),
    Scalars("one_norm", "Perturbed one-norms", "Σ √(g² + ε)", _by_pathway("pdyn/one_norm")),
    Scalars(
        "N_p",
        "Power norms N_p",
        "N_p",
        _by_pathway("pdyn/N_p"),
        "The p-update's implicit bias lowers N_p or, at Adam's betas for p > 0.005, protects it.",
    ),
    Scalars(
        "implicit_bias",
        "Implicit bias",
        "coefficient of N_p",
        _by_pathway("pdyn/implicit_bias"),
        "Above 0, N_p is penalised; below, it is protected, less so in small batches than this says.",
        logarithmic=False,
    ),
)
ALLOCATION = (
    Scalars(
        "lr_factor",
        "Size at the run's p",
        "c(p)",
        {"": "pdyn/allocation/lr_factor"},
        "How many times smaller than Adam's the raw update is.",
    ),
    Scalars(
        "cosine_to_adam",
        "Direction at the run's p",
        "cosine to Adam's update",
        {"": "pdyn/allocation/cosine_to_adam"},
        "Where it is 1, p is a learning rate and nothing else.",
        logarithmic=False,
    ),
    Scalars(
        "update_ratio_slope",
        "Pull of p on the update balance",
        "d log(U_w / U_b) / dp",
        {"": "pdyn/allocation/update_ratio_slope"},
        "Above 0, a larger p gives weights more of the update.",
        logarithmic=False,
    ),
    Scalars(
        "p_step_factor",
        "Size of one p_step",
        "factor of raw updates",
        {"": "pdyn/allocation/p_step_factor"},
        "By which one decision upwards multiplies raw updates; update_scale=adam makes up for it.",
    ),
)
TARGET = (
    Scalars(
        "target",
        "Control by target",
        "the quantity that is wanted",
        {name: f"pdyn/target/{name}" for name in ("wanted", "found", "expected")},
        "Found before each decision, expected at the p that it chose.",
    ),
    Scalars(
        "target_p", "Exponent p by target", "p from then on", {"": "pdyn/target/p"}, stepped="after", logarithmic=False
    ),
)
DECAY = (
    Scalars(
        "weight_decay", "Weight decay", "weight decay", {"": "pdyn/weight_decay"}, stepped="before", logarithmic=False
    ),
    Scalars("a_t", "Accumulated decay a_t", "a_t", {"": "pdyn/a_t"}, noisy=False),
)


_MOST_GROUPS = 4
"""As many as a chart has dashes."""


def group_charts(drawing: Drawing) -> tuple[tuple[Chart, ...], int]:
    """Charts of the user's own parameter groups; and how many groups are in no chart."""
    names = list(dict.fromkeys(name for run in drawing.runs for name in run.named_groups))
    shown = names[:_MOST_GROUPS]
    wanted = (
        Scalars(
            f"group_{key}",
            title,
            y_title,
            {name: f"pdyn/by_group/{name}/{key}" for name in shown},
            stepped=_stepped(key),
            logarithmic=False,
        )
        for key, title, y_title in (
            ("grad_share", "Gradient by group", "part of the squared norm"),
            ("update_share", "Update by group", "part of the squared norm"),
            ("lr", "Learning rate by group", "learning rate"),
            ("weight_decay", "Weight decay by group", "weight decay"),
            ("p", "Exponent p by group", "p"),
        )
    )
    charts = scalar_charts(drawing, wanted)
    return charts, len(names) - len(shown)


def scalar_charts(drawing: Drawing, wanted: Iterable[Scalars]) -> tuple[Chart, ...]:
    """The charts of those for which any run has a value."""
    return tuple(chart for scalars in wanted if (chart := _scalar_chart(drawing, scalars)) is not None)


def _scalar_chart(drawing: Drawing, scalars: Scalars) -> Chart | None:
    found = [
        Line(run.name, series, variant, run.partial_steps(metric) & frozenset(series.steps))
        for run in drawing.runs
        for variant, metric in scalars.metrics.items()
        if len(series := run.series(metric))
    ]
    if not found:
        return None
    fewest, most = _POINTS_OF_A_LINE
    limit = min(max(_POINTS_OF_A_CHART // len(found), fewest), most)
    drawing.thinned_lines |= any(len(line.series) > limit for line in found)
    spec = vega.lines(
        [dataclasses.replace(line, series=thin(line.series, limit)) for line in found],
        drawing.palette,
        y_title=scalars.y_title,
        variants=[variant for variant in scalars.metrics if variant],
        stepped=scalars.stepped,
        logarithmic=scalars.logarithmic,
        smooth=scalars.noisy,
    )
    note = f"{scalars.note} {_PARTIAL if any(line.partial for line in found) else ''}".strip()
    return Chart(scalars.key, scalars.title, note, spec)


_CHARTED = {
    metric
    for scalars in (*BALANCE, *LEARNING, *TARGET, *ALLOCATION, *UPDATES, *DECAY)
    for metric in scalars.metrics.values()
}


def other_scalar_charts(drawing: Drawing) -> tuple[tuple[Chart, ...], int]:
    """Whatever else the log records hold, but timings and what a chart has already; and how many are left out."""
    shown = [
        name
        for name in dict.fromkeys(name for run in drawing.runs for name in run.metrics)
        if name not in _CHARTED
        and not _MADE_OF_RUNS.search(name)
        and name != STEPS
        and not name.startswith(("pdyn/control/", "pdyn/spectrum/", "pdyn/wd_off/"))
        and (name.count("/") < 3 or _OF_A_PATHWAY.fullmatch(name))
        and any(len(run.series(name)) > 1 and any(run.series(name).values) for run in drawing.runs)
    ]
    charts = scalar_charts(
        drawing,
        (
            Scalars(f"other-{i:02d}-{file_name(name)}", name, name, {"": name}, stepped=_stepped(name))
            for i, name in enumerate(shown[:_OTHER_CHARTS])
        ),
    )
    return charts, len(shown) - len(charts)
