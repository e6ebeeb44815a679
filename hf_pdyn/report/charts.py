"""Which charts a report has: from runs to specifications, section by section."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_pdyn.policy.algorithm1 import BRANCHES
from hf_pdyn.report import vega
from hf_pdyn.report.layer_maps import PATHWAYS, HeatMap, layer_quantities, short_labels
from hf_pdyn.report.recorded_run import STEPS, RecordedRun
from hf_pdyn.report.sample_losses import HardSamples, distribution, losses_by_epoch, not_drawn, overlap
from hf_pdyn.report.theme import Palette, Spec
from hf_pdyn.report.thinning import evenly, thin
from hf_pdyn.report.vega import Line

_POINTS_OF_A_CHART = 4000
_POINTS_OF_A_LINE = (60, 1000)
_CELLS_OF_A_REPORT = 300_000
_COLUMNS_OF_A_HEAT_MAP = (12, 120)
_EPOCHS_OF_A_CHART = 60
_OTHER_CHARTS = 24

_PARTIAL = "Hollow: a record of fewer steps than its neighbour, such as a run's last."
_OF_A_PATHWAY = re.compile(r"pdyn/by_label/[^/]+/[^/]+")
_MADE_OF_RUNS = re.compile(r"(_runtime|_per_second|_flos)$")


@dataclass(frozen=True)
class Chart:
    """One chart. key: unique in a report, also the name of its image file. note: a sentence under the title.

    run, part: of a heat map, whose it is; a page shows those of one run and one part at a time.
    """

    key: str
    title: str
    note: str
    spec: Spec
    run: str | None = None
    part: str | None = None


@dataclass(frozen=True)
class Section:
    """Charts under one heading; where there are none, `absent` says why and what to do."""

    key: str
    title: str
    intro: str
    charts: tuple[Chart, ...]
    absent: str


class Thinned:
    """Whether anything was left out, so that the page can say it."""

    def __init__(self) -> None:
        self.lines = False
        self.evenly = False


def sections(runs: Sequence[RecordedRun]) -> tuple[list[Section], Thinned]:
    """All sections of a report on these runs, in their order on the page; and whether points were left out."""
    charts = _Charts(runs)
    found = [
        Section(
            "balance",
            "Exponent and gradient balance",
            "How the signal is split between weights and bias-like parameters, and the exponent p that steers it.",
            charts.of_scalars(_BALANCE),
            "No gradient norms recorded: add a TelemetryCallback, or --telemetry global.",
        ),
        Section(
            "learning",
            "Learning curves",
            "",
            charts.of_scalars(_LEARNING),
            "No losses recorded: nothing was logged before the run ended.",
        ),
        Section(
            "control",
            "Algorithm 1",
            "Each mark is a decision; its shape is the branch that fired. Triangles point where p went, a diamond is a "
            "rebound of D_b, which lowers p.",
            charts.of_decisions(),
            "No decisions recorded: --p_control gradient.",
        ),
        Section(
            "updates",
            "Updates and norms",
            "",
            charts.of_scalars(_UPDATES),
            "No update norms recorded: add a TelemetryCallback, or --telemetry global.",
        ),
        Section(
            "layers",
            "Layers",
            "Colours are logarithmic. Blank is zero, or not recorded.",
            charts.of_layers(),
            "No layers recorded: --telemetry layers.",
        ),
        Section(
            "decay",
            "Weight decay",
            "a_t, the decay accumulated so far, is the time variable of time-dependent mirror flows.",
            charts.of_scalars(_DECAY),
            "No weight decay recorded: add a TelemetryCallback, or --telemetry global.",
        ),
        Section("spectra", "Spectra", "", charts.of_spectra(), "No spectra recorded: --spectra."),
        Section(
            "samples",
            "Samples",
            "",
            (*charts.of_sample_losses(), *charts.of_hard_samples()),
            "No sample losses recorded: --sample_losses.",
        ),
    ]
    other, left_out = charts.of_other_scalars()
    intro = f"The first {len(other)} of {len(other) + left_out} metrics; the others are left out." if left_out else ""
    found.append(Section("other", "Other metrics", intro, other, "Nothing else was logged."))
    return _with_unique_keys(found), charts.thinned


def _with_unique_keys(found: Sequence[Section]) -> list[Section]:
    """Names that differ only in what no file's name should have get a number."""
    used: dict[str, int] = {}

    def numbered(chart: Chart) -> Chart:
        used[chart.key] = used.get(chart.key, 0) + 1
        return chart if used[chart.key] == 1 else dataclasses.replace(chart, key=f"{chart.key}-{used[chart.key]}")

    return [dataclasses.replace(section, charts=tuple(map(numbered, section.charts))) for section in found]


@dataclass(frozen=True)
class _Scalars:
    """A chart of numbers of the log records; `metrics` by what tells them apart in the chart."""

    key: str
    title: str
    y_title: str
    metrics: dict[str, str]
    note: str = ""
    stepped: bool = False
    logarithmic: bool | None = None


def _by_pathway(metric: str) -> dict[str, str]:
    return {pathway: f"{metric}/{pathway}" for pathway in PATHWAYS}


_BALANCE = (
    _Scalars(
        "p", "Exponent p", "p", {"": "pdyn/p"}, "1/2 is Adam, 0 is momentum SGD.", stepped=True, logarithmic=False
    ),
    _Scalars(
        "gradients",
        "Gradient norms D_w and D_b",
        "L2 norm before clipping",
        {"D_w": "pdyn/D_w", "D_b": "pdyn/D_b"},
        "Means over the steps of a log record (Eq. 31).",
    ),
    _Scalars("gradient_ratio", "Gradient balance G_w / G_b", "D_w / D_b", {"": "pdyn/G_w_over_G_b"}),
)
_LEARNING = (
    _Scalars("loss", "Training loss", "loss", {"": "loss"}),
    _Scalars("eval_loss", "Evaluation loss", "loss", {"": "eval_loss"}),
    _Scalars("learning_rate", "Learning rate", "learning rate", {"": "learning_rate"}, logarithmic=False),
    _Scalars("grad_norm", "Gradient norm of all parameters", "L2 norm", {"": "grad_norm"}, "As the Trainer logs it."),
)
_UPDATES = (
    _Scalars("update_norm", "Update norms", "L2 norm", _by_pathway("pdyn/update_norm")),
    _Scalars("update_ratio", "Update balance", "weight / bias_like", {"": "pdyn/update_ratio"}),
    _Scalars("param_norm", "Parameter norms", "L2 norm", _by_pathway("pdyn/param_norm")),
    _Scalars("v_hat_mean", "Second moments", "mean of v̂", _by_pathway("pdyn/v_hat_mean")),
    _Scalars("one_norm", "Perturbed one-norms", "Σ √(g² + ε)", _by_pathway("pdyn/one_norm")),
    _Scalars(
        "N_p",
        "Power norms N_p",
        "N_p",
        _by_pathway("pdyn/N_p"),
        "The p-update's implicit bias lowers N_p or, at Adam's betas for p > 0.005, protects it.",
    ),
    _Scalars(
        "implicit_bias",
        "Implicit bias",
        "coefficient of N_p",
        _by_pathway("pdyn/implicit_bias"),
        "Above 0, N_p is penalised; below, it is protected, less so in small batches than this says.",
        logarithmic=False,
    ),
)
_DECAY = (
    _Scalars(
        "weight_decay", "Weight decay", "weight decay", {"": "pdyn/weight_decay"}, stepped=True, logarithmic=False
    ),
    _Scalars("a_t", "Accumulated decay a_t", "a_t", {"": "pdyn/a_t"}),
)
_HEAT_MAPS = (("grad_norm", "Gradient norm"), ("update_norm", "Update norm"), ("ratio", "Update / parameter norm"))
_SPECTRA = (
    ("nuc_over_fro", "Nuclear over Frobenius norm"),
    ("effective_rank", "Effective rank"),
    ("stable_rank", "Stable rank"),
    ("nuclear", "Nuclear norm"),
    ("frobenius", "Frobenius norm"),
)


class _Charts:
    def __init__(self, runs: Sequence[RecordedRun]) -> None:
        self.runs = runs
        self.palette = Palette(tuple(run.name for run in runs))
        self.thinned = Thinned()
        self._charted: set[str] = set()
        self._quantities = [(run, layer_quantities(run.layers)) for run in runs]
        self._sample_losses = [(run, losses_by_epoch(run.sample_losses)) for run in runs]

    def of_scalars(self, wanted: Iterable[_Scalars]) -> tuple[Chart, ...]:
        """The charts of those for which any run has a value."""
        return tuple(chart for scalars in wanted if (chart := self._of_scalar(scalars)) is not None)

    def _of_scalar(self, scalars: _Scalars) -> Chart | None:
        self._charted |= set(scalars.metrics.values())
        found = [
            Line(run.name, series, variant, run.partial_steps(metric) & frozenset(series.steps))
            for run in self.runs
            for variant, metric in scalars.metrics.items()
            if len(series := run.series(metric))
        ]
        if not found:
            return None
        fewest, most = _POINTS_OF_A_LINE
        limit = min(max(_POINTS_OF_A_CHART // len(found), fewest), most)
        self.thinned.lines |= any(len(line.series) > limit for line in found)
        spec = vega.lines(
            [dataclasses.replace(line, series=thin(line.series, limit)) for line in found],
            self.palette,
            y_title=scalars.y_title,
            variants=[variant for variant in scalars.metrics if variant],
            stepped=scalars.stepped,
            logarithmic=scalars.logarithmic,
        )
        note = f"{scalars.note} {_PARTIAL if any(line.partial for line in found) else ''}".strip()
        return Chart(scalars.key, scalars.title, note, spec)

    def of_decisions(self) -> tuple[Chart, ...]:
        rows = [{"run": run.name, **row} for run in self.runs for row in run.decided]
        if not rows:
            return ()
        fired = {row["branch"] for row in rows}
        spec = vega.decisions(rows, self.palette, [branch for branch in BRANCHES if branch in fired])
        return (Chart("decisions", "Decisions", "", spec),)

    def of_layers(self) -> tuple[Chart, ...]:
        """Gradient, update and their ratio, by run and pathway."""
        found = []
        for run, by_part in self._quantities:
            for part, by_name in by_part.items():
                if part in PATHWAYS:
                    maps = {name: HeatMap.of(quantity) for name, quantity in by_name.items()}
                    if {"update_norm", "param_norm"} <= by_name.keys():
                        maps["ratio"] = HeatMap.of(by_name["update_norm"], by_name["param_norm"])
                    found += [(run, part, *wanted, maps[wanted[0]]) for wanted in _HEAT_MAPS if wanted[0] in maps]
        return self._heat_maps(found)

    def of_spectra(self) -> tuple[Chart, ...]:
        """Means over layers as lines, and every layer of every recorded product as a heat map."""
        parts = sorted({match[1] for run in self.runs for name in run.metrics if (match := _SPECTRUM.fullmatch(name))})
        known = dict(_SPECTRA)
        names = [*known, *sorted({m[2] for r in self.runs for name in r.metrics if (m := _SPECTRUM.fullmatch(name))})]
        lines = self.of_scalars(
            _Scalars(
                f"spectrum_{_file_name(name)}",
                known.get(name, name),
                name,
                {part: f"pdyn/spectrum/{part}/{name}" for part in parts},
                "Mean over layers.",
                logarithmic=False,
            )
            for name in dict.fromkeys(names)
        )
        found = []
        for run, by_part in self._quantities:
            for part, by_name in by_part.items():
                if part not in PATHWAYS and not _HEAD.fullmatch(part):  # a head is not a row of its own
                    for name, quantity in by_name.items():
                        found.append((run, part, name, known.get(name, name), HeatMap.of(quantity)))
        return (*lines, *self._heat_maps(found))

    def _heat_maps(self, found: Sequence[tuple[RecordedRun, str, str, str, HeatMap]]) -> tuple[Chart, ...]:
        cells = _CELLS_OF_A_REPORT // max(len(found), 1)
        fewest, most = _COLUMNS_OF_A_HEAT_MAP
        charts = []
        for run, part, name, title, wanted in found:
            columns = min(max(cells // max(len(wanted.layers), 1), fewest), most)
            steps = self._evenly(wanted.steps, columns)
            values = wanted.values(steps)
            if not np.isfinite(values).any():  # a ratio of what never stands side by side
                continue
            spec = vega.heat_map(
                dict(zip(wanted.layers, values.tolist(), strict=True)),
                run=run.name,
                steps=steps,
                value_title=title.lower(),
                labels=short_labels(wanted.layers),
            )
            key = "-".join(["layers", _file_name(part), _file_name(name), f"run{self.runs.index(run)}"])
            note = f"{part}; {len(wanted.layers)} layers"
            if wanted.left_out:
                note += f", {wanted.left_out:,} more are left out"
            partial = [step for step in steps if step in run.partial_records] if part in PATHWAYS else []
            if partial:
                note += f"; the column of step {partial[-1]:,} covers {run.partial_records[partial[-1]]:,} steps only"
            charts.append(Chart(key, title, note, spec, run=run.name, part=part))
        return tuple(charts)

    def of_sample_losses(self) -> tuple[Chart, ...]:
        """Quantiles of the losses of a split over epochs."""
        rows: dict[str, list[dict[str, Any]]] = {}
        for run, by_split in self._sample_losses:
            for split, by_step in by_split.items():
                for step in self._evenly(list(by_step), _EPOCHS_OF_A_CHART):
                    moment = {"run": run.name, "step": step, "epoch": by_step[step].epoch}
                    rows.setdefault(split, []).append(moment | distribution(by_step[step].loss))
        return tuple(
            Chart(
                f"sample_losses-{_file_name(split)}",
                f"Losses of {split} samples",
                f"Median, the middle half as a band, 5 % to 95 % as rules.{not_drawn(rows[split])}",
                vega.bands(rows[split], self.palette, y_title="loss of a sample"),
            )
            for split in sorted(rows)
        )

    def of_hard_samples(self) -> tuple[Chart, ...]:
        """How far runs agree on the hardest tenth of a split, after their last epochs."""
        last: dict[str, dict[str, HardSamples]] = {}
        for run, by_split in self._sample_losses:
            for split, by_step in by_split.items():
                last.setdefault(split, {})[run.name] = HardSamples.of(by_step[max(by_step)])
        charts = []
        for split, by_run in sorted(last.items()):
            if len(by_run) < 2:
                continue
            rows = [
                {"run": one, "other": other, **overlap(by_run[one], by_run[other])}
                for one in by_run
                for other in by_run
            ]
            spec = vega.matrix(rows, list(by_run), value_title="Jaccard index")
            note = "Jaccard index of the hardest tenth after the last epoch. Blank: the runs measured other samples."
            charts.append(Chart(f"jaccard-{_file_name(split)}", f"Shared hard samples of {split}", note, spec))
        return tuple(charts)

    def _evenly(self, steps: list[int], most: int) -> list[int]:
        self.thinned.evenly |= len(steps) > most
        return evenly(steps, most)

    def of_other_scalars(self) -> tuple[tuple[Chart, ...], int]:
        """Whatever else the log records hold, but timings and what a chart has already; and how many are left out."""
        names = dict.fromkeys(name for run in self.runs for name in run.metrics)
        shown = [
            name
            for name in names
            if name not in self._charted
            and not _MADE_OF_RUNS.search(name)
            and name != STEPS
            and not name.startswith(("pdyn/control/", "pdyn/spectrum/"))
            and (name.count("/") < 3 or _OF_A_PATHWAY.fullmatch(name))
            and any(len(run.series(name)) > 1 and any(run.series(name).values) for run in self.runs)
        ]
        charts = self.of_scalars(
            _Scalars(f"other-{i:02d}-{_file_name(name)}", name, name, {"": name})
            for i, name in enumerate(shown[:_OTHER_CHARTS])
        )
        return charts, len(shown) - len(charts)


_SPECTRUM = re.compile(r"pdyn/spectrum/(.+)/([^/]+)")
_HEAD = re.compile(r"attention/head \d+")


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "_", text).strip("_")[:60] or "unnamed"
