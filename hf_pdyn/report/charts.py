"""Which charts a report has: from runs to specifications, section by section."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hf_pdyn.common.json_values import finite_or_none
from hf_pdyn.measure.sample_loss import hard_samples, jaccard, quantiles
from hf_pdyn.policy.algorithm1 import BRANCHES
from hf_pdyn.report import vega
from hf_pdyn.report.recorded_run import STEPS, RecordedRun, printable
from hf_pdyn.report.thinning import evenly, thin
from hf_pdyn.report.vega import Line, Palette, Spec

_POINTS_OF_A_CHART = 4000
_POINTS_OF_A_LINE = (60, 1000)
_CELLS_OF_A_REPORT = 300_000
_COLUMNS_OF_A_HEAT_MAP = (12, 120)
_LAYERS_OF_A_HEAT_MAP = 1000
_EPOCHS_OF_A_CHART = 60
_OTHER_CHARTS = 24

_PATHWAYS = ("weight", "bias_like")
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
    _Scalars(
        "N_p",
        "Power norms N_p",
        "N_p",
        _by_pathway("pdyn/N_p"),
        "The p-update's implicit bias lowers N_p or, at Adam's betas for p > 0.005, protects it.",
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
        self._quantities = [(run, _quantities(run.layers)) for run in runs]
        self._sample_losses = [(run, _epochs(run.sample_losses)) for run in runs]

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
                if part in _PATHWAYS:
                    maps = {name: _Map.of(quantity) for name, quantity in by_name.items()}
                    if {"update_norm", "param_norm"} <= by_name.keys():
                        maps["ratio"] = _Map.of(by_name["update_norm"], by_name["param_norm"])
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
                if part not in _PATHWAYS and not _HEAD.fullmatch(part):  # a head is not a row of its own
                    for name, quantity in by_name.items():
                        found.append((run, part, name, known.get(name, name), _Map.of(quantity)))
        return (*lines, *self._heat_maps(found))

    def _heat_maps(self, found: Sequence[tuple[RecordedRun, str, str, str, _Map]]) -> tuple[Chart, ...]:
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
                labels=_short_labels(wanted.layers),
            )
            key = "-".join(["layers", _file_name(part), _file_name(name), f"run{self.runs.index(run)}"])
            note = f"{part}; {len(wanted.layers)} layers"
            if wanted.left_out:
                note += f", {wanted.left_out:,} more are left out"
            partial = [step for step in steps if step in run.partial_records] if part in _PATHWAYS else []
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
                    rows.setdefault(split, []).append(moment | _distribution(by_step[step].loss))
        return tuple(
            Chart(
                f"sample_losses-{_file_name(split)}",
                f"Losses of {split} samples",
                f"Median, the middle half as a band, 5 % to 95 % as rules.{_not_drawn(rows[split])}",
                vega.bands(rows[split], self.palette, y_title="loss of a sample"),
            )
            for split in sorted(rows)
        )

    def of_hard_samples(self) -> tuple[Chart, ...]:
        """How far runs agree on the hardest tenth of a split, after their last epochs."""
        last: dict[str, dict[str, _Hard]] = {}
        for run, by_split in self._sample_losses:
            for split, by_step in by_split.items():
                last.setdefault(split, {})[run.name] = _Hard.of(by_step[max(by_step)])
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
_QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}


@dataclass(frozen=True, eq=False)
class _Epoch:
    """Losses of a split after an epoch: (n,) each, what is not finite among them. epoch: None where it is not known."""

    epoch: float | None
    index: NDArray[np.int64]
    loss: NDArray[np.float64]


def _epochs(table: pa.Table) -> dict[str, dict[int, _Epoch]]:
    """By split, by step, in their order."""
    table = _known(table, ("split", "step", "index", "loss"))
    codes, splits = _encoded(table["split"])
    step, epoch, index, loss = (table[name].to_numpy() for name in ("step", "epoch", "index", "loss"))
    found: dict[str, dict[int, _Epoch]] = {}
    for code, split in enumerate(splits):
        rows = np.flatnonzero(codes == code)
        for own in np.split(rows, np.flatnonzero(np.diff(step[rows])) + 1):
            moment = finite_or_none(float(epoch[own[0]]))
            found.setdefault(split, {})[int(step[own[0]])] = _Epoch(moment, index[own], loss[own])
    return found


@dataclass(frozen=True, eq=False)
class _Quantity:
    """A quantity of a part as it was recorded: (n,) each, values finite. layer: where its name stands in `names`."""

    names: Sequence[str]
    layer: NDArray[np.int32]
    step: NDArray[np.int64]
    value: NDArray[np.float64]

    def at(self, steps: Sequence[int], layers: Sequence[str]) -> NDArray[np.float64]:
        """Values (layers, steps), NaN where there are none; steps ascend."""
        row_of = {layer: row for row, layer in enumerate(layers)}
        rows = np.array([row_of.get(name, -1) for name in self.names])[self.layer]
        kept = np.isin(self.step, steps) & (rows >= 0)
        found = np.full((len(layers), len(steps)), np.nan)
        found[rows[kept], np.searchsorted(steps, self.step[kept])] = self.value[kept]
        return found


def _quantities(table: pa.Table) -> dict[str, dict[str, _Quantity]]:
    """By part, pathways first, by name of the quantity."""
    table = _known(table, ("part", "name", "layer", "step", "value"))
    table = table.filter(pc.is_finite(table["value"]))
    (part, parts), (name, names), (layer, layers) = (_encoded(table[column]) for column in ("part", "name", "layer"))
    step, value = table["step"].to_numpy(), table["value"].to_numpy()
    found: dict[str, dict[str, _Quantity]] = {}
    kinds = part.astype(np.int64) * max(len(names), 1) + name
    by_kind = np.argsort(kinds, kind="stable")
    for own in np.split(by_kind, np.flatnonzero(np.diff(kinds[by_kind])) + 1) if len(kinds) else ():
        kind = kinds[own[0]]
        quantity = _Quantity(layers, layer[own], step[own], value[own])
        found.setdefault(parts[kind // len(names)], {})[names[kind % len(names)]] = quantity
    return {
        part: found[part] for part in sorted(found, key=lambda part: (part not in _PATHWAYS, part != "weight", part))
    }


def _known(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """The rows that have all of these."""
    return table.filter(reduce(pc.and_, [pc.is_valid(table[column]) for column in columns]))


def _encoded(column: pa.ChunkedArray) -> tuple[NDArray[np.int32], list[str]]:
    """Which of its words each row has, and the words."""
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy(), [printable(word) for word in encoded.dictionary.to_pylist()]


@dataclass(frozen=True, eq=False)
class _Map:
    """A heat map of a quantity, or of its ratio to another: its layers from top to bottom, and all of its steps.

    left_out: how many layers it has beyond those that can be drawn.
    """

    above: _Quantity
    below: _Quantity | None
    layers: list[str]
    steps: list[int]
    left_out: int

    @classmethod
    def of(cls, above: _Quantity, below: _Quantity | None = None) -> _Map:
        layers, steps = np.unique(above.layer), np.unique(above.step)
        if below is not None:
            layers, steps = np.intersect1d(layers, below.layer), np.intersect1d(steps, below.step)
        drawn = sorted((above.names[i] for i in layers[:_LAYERS_OF_A_HEAT_MAP]), key=natural)
        return cls(above, below, drawn, steps.tolist(), max(len(layers) - _LAYERS_OF_A_HEAT_MAP, 0))

    def values(self, steps: Sequence[int]) -> NDArray[np.float64]:
        """Values (layers, steps), NaN where there are none, or none that is finite."""
        found = self.above.at(steps, self.layers)
        if self.below is not None:
            with np.errstate(all="ignore"):
                found = found / self.below.at(steps, self.layers)
        return np.where(np.isfinite(found), found, np.nan)


def natural(text: str) -> list[tuple[int, int | str]]:
    """A key by which h.2 comes before h.10."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", text)]


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


def _distribution(loss: NDArray[np.float64]) -> dict[str, float | None]:
    """Quantiles, None where they are infinite, the mean of the finite losses, and how many are not."""
    finite = loss[np.isfinite(loss)]
    found = dict(zip(_QUANTILES, quantiles(loss, list(_QUANTILES.values())), strict=True))
    found["mean"] = float(finite.mean()) if len(finite) else np.inf
    numbers = {name: vega.short(value) if np.isfinite(value) else None for name, value in found.items()}
    return numbers | {"nonfinite": len(loss) - len(finite)}


def _not_drawn(rows: Iterable[dict[str, Any]]) -> str:
    """A sentence on the runs of which a quantile is infinite."""
    runs = list(dict.fromkeys(row["run"] for row in rows if any(row[name] is None for name in _QUANTILES)))
    named = ", ".join(runs[:5]) + (f" and {len(runs) - 5} more" if len(runs) > 5 else "")
    return f" Infinite quantiles are not drawn: {named}." if runs else ""


@dataclass(frozen=True, eq=False)
class _Hard:
    """The hard samples after an epoch. measured: indices of all, ascending. samples: of the hard ones."""

    epoch: float | None
    measured: NDArray[np.int64]
    samples: NDArray[np.int64]

    @classmethod
    def of(cls, epoch: _Epoch) -> _Hard:
        # Ascending, as of equal losses all runs must take the same ones.
        measured, place = np.unique(epoch.index, return_index=True)
        return cls(epoch.epoch, measured, measured[hard_samples(epoch.loss[place])])


def _overlap(one: _Hard, other: _Hard) -> dict[str, Any]:
    if not np.array_equal(one.measured, other.measured):
        return {"value": None, "note": "measured other samples"}
    when = " and ".join(f"{at:.3g}" for at in dict.fromkeys((one.epoch, other.epoch)) if at is not None)
    note = f"{len(one.samples)} hard samples each, epoch {when or 'unknown'}"
    return {"value": vega.short(jaccard(one.samples, other.samples)), "note": note}


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "_", text).strip("_")[:60] or "unnamed"
