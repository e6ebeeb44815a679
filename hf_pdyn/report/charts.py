"""Which charts a report has: from runs to specifications, section by section."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_pdyn.control import BRANCHES
from hf_pdyn.report import vega
from hf_pdyn.report.run import Run
from hf_pdyn.report.thinning import evenly, thin
from hf_pdyn.report.vega import Line, Palette, Spec
from hf_pdyn.sample_loss import hard_samples, jaccard

_POINTS_OF_A_CHART = 4000
_POINTS_OF_A_LINE = (60, 1000)
_CELLS_OF_A_REPORT = 300_000
_COLUMNS_OF_A_HEAT_MAP = (12, 120)
_EPOCHS_OF_A_CHART = 60
_OTHER_CHARTS = 24

_PATHWAYS = ("weight", "bias_like")
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


def sections(runs: Sequence[Run]) -> tuple[list[Section], Thinned]:
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
            "a_t = -Σ lr · weight_decay is the time variable of time-dependent mirror flows.",
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
        Section("other", "Other metrics", "", charts.of_other_scalars(), "Nothing else was logged."),
    ]
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
    return {pathway: f"{metric}/{pathway}" for pathway in _PATHWAYS}


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
    _Scalars("N_p", "What the p-update penalises, N_p", "N_p", _by_pathway("pdyn/N_p")),
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
    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs
        self.palette = Palette(tuple(run.name for run in runs))
        self.thinned = Thinned()
        self._charted: set[str] = set()
        self._sample_losses = [(run, sample_losses(run)) for run in runs]

    def of_scalars(self, wanted: Iterable[_Scalars]) -> tuple[Chart, ...]:
        """The charts of those for which any run has a value."""
        return tuple(chart for scalars in wanted if (chart := self._of_scalar(scalars)) is not None)

    def _of_scalar(self, scalars: _Scalars) -> Chart | None:
        self._charted |= set(scalars.metrics.values())
        found = [
            (run, variant, series)
            for run in self.runs
            for variant, metric in scalars.metrics.items()
            if len(series := run.series(metric))
        ]
        if not found:
            return None
        fewest, most = _POINTS_OF_A_LINE
        limit = min(max(_POINTS_OF_A_CHART // len(found), fewest), most)
        self.thinned.lines |= any(len(series) > limit for _, _, series in found)
        spec = vega.lines(
            [Line(run.name, thin(series, limit), variant) for run, variant, series in found],
            self.palette,
            y_title=scalars.y_title,
            variants=[variant for variant in scalars.metrics if variant],
            stepped=scalars.stepped,
            logarithmic=scalars.logarithmic,
        )
        return Chart(scalars.key, scalars.title, scalars.note, spec)

    def of_decisions(self) -> tuple[Chart, ...]:
        rows = [{"run": run.name, **row} for run in self.runs for row in decision_rows(run)]
        if not rows:
            return ()
        fired = {row["branch"] for row in rows}
        spec = vega.decisions(rows, self.palette, [branch for branch in BRANCHES if branch in fired])
        return (Chart("decisions", "Decisions", "", spec),)

    def of_layers(self) -> tuple[Chart, ...]:
        """Gradient, update and their ratio, by run and pathway."""
        found = []
        for run in self.runs:
            for part, by_name in _layer_values(run).items():
                if part in _PATHWAYS:
                    updates, params = by_name.get("update_norm", {}), by_name.get("param_norm", {})
                    values = {**by_name, "ratio": _ratio(updates, params)}
                    found += [(run, part, *wanted, values[wanted[0]]) for wanted in _HEAT_MAPS if values.get(wanted[0])]
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
        for run in self.runs:
            for part, by_name in _layer_values(run).items():
                if part not in _PATHWAYS and "/" not in part:  # a head is not a row of its own
                    found += [(run, part, name, known.get(name, name), values) for name, values in by_name.items()]
        return (*lines, *self._heat_maps(found))

    def _heat_maps(self, found: Sequence[tuple[Run, str, str, str, _Values]]) -> tuple[Chart, ...]:
        cells = _CELLS_OF_A_REPORT // max(len(found), 1)
        fewest, most = _COLUMNS_OF_A_HEAT_MAP
        charts = []
        for run, part, name, title, values in found:
            layers = sorted(values, key=natural)
            steps = sorted({step for by_step in values.values() for step in by_step})
            columns = min(max(cells // len(layers), fewest), most)
            spec = vega.heat_map(
                {layer: values[layer] for layer in layers},
                run=run.name,
                steps=self._evenly(steps, columns),
                value_title=title.lower(),
                labels=_short_labels(layers),
            )
            key = "-".join(["layers", _file_name(part), _file_name(name), f"run{self.runs.index(run)}"])
            note = f"{part}; {len(layers)} layers"
            charts.append(Chart(key, title, note, spec, run=run.name, part=part))
        return tuple(charts)

    def of_sample_losses(self) -> tuple[Chart, ...]:
        """Quantiles of the losses of a split over epochs."""
        rows: dict[str, list[dict[str, Any]]] = {}
        for run, by_split in self._sample_losses:
            for split, by_step in by_split.items():
                for step in self._evenly(list(by_step), _EPOCHS_OF_A_CHART):
                    epoch, losses = by_step[step]
                    moment = {"run": run.name, "step": step, "epoch": epoch}
                    rows.setdefault(split, []).append(moment | _quantiles(losses.values()))
        return tuple(
            Chart(
                f"sample_losses-{_file_name(split)}",
                f"Losses of {split} samples",
                "Median, the middle half as a band, 5 % to 95 % as rules.",
                vega.bands(rows[split], self.palette, y_title="loss of a sample"),
            )
            for split in sorted(rows)
        )

    def of_hard_samples(self) -> tuple[Chart, ...]:
        """How far runs agree on the hardest tenth of a split, after their last epochs."""
        last: dict[str, dict[str, _EpochLosses]] = {}
        for run, by_split in self._sample_losses:
            for split, by_step in by_split.items():
                last.setdefault(split, {})[run.name] = by_step[max(by_step)]
        charts = []
        for split, by_run in sorted(last.items()):
            if len(by_run) < 2:
                continue
            rows = [
                {"run": one, "other": other, **_overlap(by_run[one], by_run[other])}
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

    def of_other_scalars(self) -> tuple[Chart, ...]:
        """Whatever else the log records hold, but timings and what a chart has already."""
        names = dict.fromkeys(name for run in self.runs for name in run.metrics)
        shown = [
            name
            for name in names
            if name not in self._charted
            and not _MADE_OF_RUNS.search(name)
            and not name.startswith(("pdyn/control/", "pdyn/spectrum/"))
            and name.count("/") < 3
            and any(len(run.series(name)) > 1 and any(run.series(name).values) for run in self.runs)
        ]
        return self.of_scalars(
            _Scalars(f"other-{i:02d}-{_file_name(name)}", name, name, {"": name})
            for i, name in enumerate(shown[:_OTHER_CHARTS])
        )


_Values = dict[str, dict[int, float]]
"""By layer, by step."""

_SPECTRUM = re.compile(r"pdyn/spectrum/(.+)/([^/]+)")
_QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}


def decision_rows(run: Run) -> list[dict[str, Any]]:
    """A run's decisions with a step, a p and a branch that is one; numbers that are not finite are None."""
    rows = [{key: _finite_or_none(value) for key, value in row.items()} for row in run.decisions.to_pylist()]
    return [row for row in rows if row["step"] is not None and row["p"] is not None and row["branch"] in BRANCHES]


_EpochLosses = tuple[float | None, dict[int, float]]
"""The epoch, and the finite losses by index."""


def sample_losses(run: Run) -> dict[str, dict[int, _EpochLosses]]:
    """By split, by step, in their order."""
    found: dict[str, dict[int, _EpochLosses]] = {}
    columns = [run.sample_losses[name].to_pylist() for name in ("split", "step", "epoch", "index", "loss")]
    for split, step, epoch, index, loss in zip(*columns, strict=True):
        if None not in (split, step, index, loss) and math.isfinite(loss):
            found.setdefault(split, {}).setdefault(step, (_finite_or_none(epoch), {}))[1][index] = loss
    return found


def natural(text: str) -> list[tuple[int, int | str]]:
    """A key by which h.2 comes before h.10."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", text)]


def _layer_values(run: Run) -> dict[str, dict[str, _Values]]:
    """By part, by name of the quantity: finite values by layer and step."""
    found: dict[str, dict[str, _Values]] = {}
    columns = [run.layers[name].to_pylist() for name in ("part", "name", "layer", "step", "value")]
    for part, name, layer, step, value in zip(*columns, strict=True):
        if None not in (part, name, layer, step, value) and math.isfinite(value):
            found.setdefault(part, {}).setdefault(name, {}).setdefault(layer, {})[step] = value
    return {
        part: found[part] for part in sorted(found, key=lambda part: (part not in _PATHWAYS, part != "weight", part))
    }


def _ratio(numerators: _Values, denominators: _Values) -> _Values:
    found: _Values = {}
    for layer, by_step in numerators.items():
        below = denominators.get(layer, {})
        ratios = {step: value / below[step] for step, value in by_step.items() if below.get(step)}
        if ratios:
            found[layer] = ratios
    return found


def _short_labels(layers: Sequence[str]) -> dict[str, str]:
    """The layers' names without the parents that all of them have; a layer of the model itself keeps its name."""
    dotted = [layer.split(".") for layer in layers if "." in layer]
    shared = 0
    while dotted and all(len(parts) > shared + 1 for parts in dotted) and len({parts[shared] for parts in dotted}) == 1:
        shared += 1
    if len(dotted) < 2:
        return {layer: layer for layer in layers}
    while shared and dotted[0][shared].isdecimal() and not dotted[0][shared - 1].isdecimal():
        shared -= 1  # h.3 says more than 3
    short = {layer: ".".join(layer.split(".")[shared:]) if "." in layer else layer for layer in layers}
    return short if len(set(short.values())) == len(layers) else {layer: layer for layer in layers}


def _quantiles(losses: Iterable[float]) -> dict[str, float]:
    values = np.array(list(losses))
    quantiles = zip(_QUANTILES, np.quantile(values, list(_QUANTILES.values())).tolist(), strict=True)
    return {name: vega.short(value) for name, value in (*quantiles, ("mean", float(values.mean())))}


def _overlap(first: _EpochLosses, second: _EpochLosses) -> dict[str, Any]:
    (epoch, one), (other_epoch, other) = first, second
    if one.keys() != other.keys():
        return {"value": None, "note": "measured other samples"}
    when = " and ".join(f"{at:.3g}" for at in dict.fromkeys((epoch, other_epoch)) if at is not None)
    indices = np.array(sorted(one))  # of equal losses, both runs take the first ones
    hard = [indices[hard_samples([losses[i] for i in indices])] for losses in (one, other)]
    return {"value": vega.short(jaccard(*hard)), "note": f"{len(hard[0])} hard samples each, epoch {when or 'unknown'}"}


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "_", text).strip("_")[:60] or "unnamed"
