"""Which charts a report has, and what is in them."""

import dataclasses
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_pdyn.measure.sample_loss import hard_sample_overlap, read_epoch
from hf_pdyn.report import map_charts, sample_charts, sample_losses, scalar_charts
from hf_pdyn.report.chart import Chart, Section
from hf_pdyn.report.charts import sections
from hf_pdyn.report.layer_maps import natural
from hf_pdyn.report.reading import read_runs
from hf_pdyn.report.summary import configuration, final_values
from hf_pdyn.report.vega import spans_decades
from hf_pdyn.report.vega.basics import value_axis
from hf_pdyn.run_dir.tables import LAYERS, TableWriter
from tests.report.runs import diverge, make_run, write_state


def charted(*paths: Path) -> dict[str, Section]:
    return {section.key: section for section in sections(read_runs(paths))[0]}


def charts(*paths: Path) -> dict[str, Chart]:
    return {chart.key: chart for section in charted(*paths).values() for chart in section.charts}


def rows(chart: Chart) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = chart.spec["data"]["values"]
    return found


def test_a_whole_run_fills_every_section(tmp_path: Path) -> None:
    found = charted(make_run(tmp_path / "a"), make_run(tmp_path / "b", seed=1))
    assert [key for key, section in found.items() if not section.charts] == []
    keys = {key: [chart.key for chart in section.charts] for key, section in found.items()}
    assert keys["balance"] == ["p", "gradients", "gradient_ratio"]
    assert keys["learning"] == ["loss", "eval_loss", "learning_rate", "grad_norm"]
    assert keys["decay"] == ["weight_decay", "a_t"]
    curves = [f"allocation-{name}-run{run}" for run in (0, 1) for name in ("balance", "lr_factor", "cosine")]
    assert keys["allocation"] == ["lr_factor", "cosine_to_adam", "update_ratio_slope", "p_step_factor", *curves]
    assert len(keys["layers"]) == 2 * 2 * 3
    assert {"sample_losses-test", "sample_losses-train", "jaccard-test", "jaccard-train"} == set(keys["samples"])
    assert keys["other"] == ["other-00-memory_peak"]


def test_an_empty_section_says_what_to_do(tmp_path: Path) -> None:
    write_state(tmp_path, [{"step": 1, "loss": 2.0}])
    found = charted(tmp_path)
    assert found["spectra"].charts == () and found["spectra"].absent == "No spectra recorded: --spectra."
    assert "--telemetry layers" in found["layers"].absent
    assert [chart.key for chart in found["learning"].charts] == ["loss"]


def test_a_line_holds_what_was_logged(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a")
    (run,) = read_runs([path])
    by_variant = {row["variant"]: row for row in rows(charts(path)["gradients"])}
    assert by_variant["D_b"]["step"] == list(run.series("pdyn/D_b").steps)
    assert by_variant["D_w"]["value"] == pytest.approx(run.series("pdyn/D_w").values, rel=1e-4)


def test_both_gradient_balances_share_a_chart(tmp_path: Path) -> None:
    chart = charts(make_run(tmp_path / "a"))["gradient_ratio"]
    assert [row["variant"] for row in rows(chart)] == ["G_w / G_b", "scale-invariant"]
    dashes = dict(zip(*chart.spec["encoding"]["strokeDash"]["scale"].values(), strict=True))
    assert dashes["G_w / G_b"] == [1, 0] != dashes["scale-invariant"]


def test_control_by_target_has_no_decisions_of_algorithm_1(tmp_path: Path) -> None:
    values = {"p": 0.4, "wanted": 6.0, "found": 5.0, "expected": 6.0}
    write_state(tmp_path, [{"step": step, **{f"pdyn/target/{k}": v for k, v in values.items()}} for step in (10, 20)])
    found = charted(tmp_path)
    assert [chart.key for chart in found["control"].charts] == ["target", "target_p"]
    assert [row["variant"] for row in rows(found["control"].charts[0])] == ["wanted", "found", "expected"]
    assert found["other"].charts == ()


def test_a_partial_record_stands_apart_from_its_line(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", remainder=3)
    found = charts(path)
    line, point = (row for row in rows(found["gradients"]) if row["variant"] == "D_w")
    assert line["step"][-1] == 120 and "partial" not in line
    assert point["step"] == [123] and point["value"] == [7.5] and point["partial"]
    assert "Hollow" in found["gradients"].note and "Hollow" not in found["p"].note + found["loss"].note
    assert "step 123 covers 3 steps" in found["layers-weight-grad_norm-run0"].note
    assert "covers" not in found["layers-lora-effective_rank-run0"].note


def test_whole_records_are_all_on_their_line(tmp_path: Path) -> None:
    found = charts(make_run(tmp_path / "a"))
    assert not any("Hollow" in chart.note or "covers" in chart.note for chart in found.values())
    assert not any(row.get("partial") for row in rows(found["gradients"]))


def test_a_run_has_one_colour_in_every_chart(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / f"{i}", seed=i, records=4) for i in range(9)]
    scales = [
        chart.spec["encoding"]["color"]["scale"]
        for chart in charts(*paths).values()
        if chart.spec["encoding"].get("color", {}).get("field") == "run"
    ]
    assert len(scales) > 10 and all(scale == scales[0] for scale in scales)
    assert scales[0]["range"][7] == scales[0]["range"][0] != scales[0]["range"][1]


def test_heat_maps_have_layers_in_their_natural_order(tmp_path: Path) -> None:
    chart = charts(make_run(tmp_path / "a"))["layers-weight-grad_norm-run0"]
    assert [row["name"] for row in rows(chart)] == [f"transformer.h.{i}.attn" for i in (0, 2, 10)]
    assert [row["layer"] for row in rows(chart)] == ["h.0.attn", "h.2.attn", "h.10.attn"]


def test_heat_maps_of_several_runs_have_the_same_colours(tmp_path: Path) -> None:
    found = charts(make_run(tmp_path / "a"), make_run(tmp_path / "b", seed=1))
    maps = [found[f"layers-weight-grad_norm-run{run}"] for run in (0, 1)]
    values = [value for chart in maps for row in rows(chart) for value in row["value"]]
    assert [chart.spec["encoding"]["color"]["scale"]["domain"] for chart in maps] == [
        pytest.approx([min(values), max(values)], rel=1e-4)
    ] * 2


def test_what_changes_at_steps_is_drawn_as_steps(tmp_path: Path) -> None:
    """A record has the p that its last step used, a decision the one from then on."""
    path = make_run(tmp_path / "a")
    other = {"pdyn/target/p": 0.3, "pdyn/by_label/weight/p": 0.4}
    write_state(tmp_path / "b", [{"step": step, **other} for step in (10, 20)])
    found = charts(path, tmp_path / "b")
    drawn = {
        key: chart.spec["layer"][0]["mark"].get("interpolate") for key, chart in found.items() if "layer" in chart.spec
    }
    (by_label,) = (key for key in drawn if key.startswith("other") and key.endswith("_p"))
    assert {key: drawn[key] for key in ("p", "weight_decay", "target_p", "decisions", by_label, "loss", "a_t")} == {
        **dict.fromkeys(("p", "weight_decay", by_label), "step-before"),
        **dict.fromkeys(("target_p", "decisions"), "step-after"),
        **dict.fromkeys(("loss", "a_t"), None),
    }


def test_of_very_many_layers_some_are_drawn(tmp_path: Path) -> None:
    count = 200_000
    columns = {"layer": [f"h.{i}" for i in range(count)], "value": [1.0] * count}
    constant = {"step": 1, "epoch": 0.1, "part": "weight", "name": "grad_norm"}
    table = pa.table({name: columns.get(name, [constant.get(name)] * count) for name in LAYERS.schema.names})
    LAYERS.folder(tmp_path).mkdir(parents=True)
    pq.write_table(table.cast(LAYERS.schema), LAYERS.folder(tmp_path) / "many.parquet")
    chart = charts(tmp_path)["layers-weight-grad_norm-run0"]
    assert [row["name"] for row in rows(chart)][:3] == ["h.0", "h.1", "h.2"] and len(rows(chart)) == 1000
    assert "1000 layers, 199,000 more are left out" in chart.note


def test_the_ratio_is_of_update_and_parameter_norm(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a")
    (run,) = read_runs([path])
    values = {(r["layer"], r["part"], r["name"], r["step"]): r["value"] for r in run.layers.to_pylist()}
    for row in rows(charts(path)["layers-bias_like-ratio-run0"]):
        for step, ratio in zip(row["step"], row["value"], strict=True):
            update, param = (values[row["name"], "bias_like", name, step] for name in ("update_norm", "param_norm"))
            assert ratio == pytest.approx(update / param, rel=1e-4)


def test_long_runs_are_thinned_and_said_to_be(tmp_path: Path) -> None:
    short = make_run(tmp_path / "short")
    _, drawing = sections(read_runs([short]))
    assert not drawing.thinned_lines and not drawing.thinned_evenly
    long = make_run(tmp_path / "long", records=1200, every=1, samples=2)
    found, drawing = sections(read_runs([long]))
    assert drawing.thinned_lines and drawing.thinned_evenly
    by_key = {chart.key: chart for section in found for chart in section.charts}
    assert len(rows(by_key["loss"])[0]["step"]) <= 1000
    assert len(rows(by_key["layers-weight-grad_norm-run0"])[0]["step"]) == 120


def test_jaccard_compares_what_was_measured_alike(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / "a"), make_run(tmp_path / "b", samples=30), make_run(tmp_path / "c")]
    values = {(row["run"], row["other"]): row["value"] for row in rows(charts(*paths)["jaccard-test"])}
    assert values["a", "a"] == 1.0 and values["a", "c"] == 1.0  # the same seed
    assert values["a", "b"] is None
    assert "jaccard-test" not in charts(paths[0])


def test_losses_that_are_not_finite_are_the_hardest_and_hide_no_run(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    paths = [
        make_run(tmp_path / "a", samples=80),
        diverge(make_run(tmp_path / "b", samples=80), {5: inf, 7: nan}),
        diverge(make_run(tmp_path / "c", samples=80), {-1: nan}),
    ]
    found = charts(*paths)
    overlaps = {(row["run"], row["other"]): row["value"] for row in rows(found["jaccard-test"])}
    a, b = (read_epoch(path, "test") for path in paths[:2])
    assert {5, 7} <= set(b.hard_samples()) and overlaps["a", "b"] == pytest.approx(
        hard_sample_overlap([a, b])[0, 1], 1e-4
    )
    assert None not in overlaps.values()

    last = {row["run"]: row for row in rows(found["sample_losses-test"]) if row["step"] == 120}
    assert [last[run]["nonfinite"] for run in "abc"] == [0, 2, 80]
    assert last["b"]["median"] == pytest.approx(b.summary().p50, rel=1e-4) and last["b"]["q95"] is not None
    assert [last["c"][name] for name in ("q05", "median", "q95", "mean")] == [None] * 4
    assert found["sample_losses-test"].note.endswith(" Infinite quantiles are not drawn: c.")
    assert "not drawn" not in found["sample_losses-train"].note


def test_a_run_without_any_finite_loss_is_drawn(tmp_path: Path) -> None:
    path = diverge(make_run(tmp_path / "a", records=4), {-1: float("inf")})
    (row,) = rows(charts(path)["sample_losses-test"])
    assert row["nonfinite"] == 40 and row["median"] is None


def test_what_charts_need_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = read_runs([make_run(tmp_path / name, seed=seed) for seed, name in enumerate("abc")])
    places = {
        "hard_samples": sample_losses,
        "layer_quantities": map_charts,
        "losses_by_epoch": sample_charts,
    }
    calls = dict.fromkeys(places, 0)
    for name, module in places.items():
        original = getattr(module, name)

        def counting(*args: Any, name: str = name, original: Any = original) -> Any:
            calls[name] += 1
            return original(*args)

        monkeypatch.setattr(module, name, counting)
    sections(found)
    assert calls == {"hard_samples": 6, "layer_quantities": 3, "losses_by_epoch": 3}
    assert found[0].decided is found[0].decided


def test_rows_never_become_python_objects(tmp_path: Path) -> None:
    """Of 240,000 rows charting keeps what numpy has of them: layer, step and value, 20 bytes each."""
    (run,) = read_runs([make_run(tmp_path / "a", samples=1, records=4)])
    count, layers = 240_000, 60
    of = np.arange(count)
    layer = pa.array([f"h.{i}" for i in range(layers)]).take(pa.array(of % layers))
    columns = {"step": of // layers, "epoch": of / 1e3, "layer": layer, "value": 1.0 + of}
    table = pa.table({**columns, "part": ["weight"] * count, "name": ["grad_norm"] * count})
    run = dataclasses.replace(run, layers=table.select(LAYERS.schema.names).cast(LAYERS.schema))
    tracemalloc.start()
    found, drawing = sections([run])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    (chart,) = (chart for section in found if section.key == "layers" for chart in section.charts)
    row = rows(chart)[1]
    assert (row["name"], row["step"][-1]) == ("h.1", count // layers - 1) and drawing.thinned_evenly
    assert row["value"][-1] == pytest.approx(count - layers + 2, rel=1e-4)
    assert peak < 60 * count


def test_of_several_adapters_each_has_its_maps(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a")
    writer = TableWriter(path, LAYERS)
    row = {"step": 130, "epoch": 3.0, "layer": "h.0", "name": "nuclear", "value": 2.0}
    writer.add([row | {"part": part} for part in ("lora/english", "lora/head 3", "attention/head 4")])
    writer.flush()
    parts = {chart.part for chart in charted(path)["spectra"].charts}
    assert parts == {None, "attention", "lora", "lora/english", "lora/head 3"}


def test_metrics_that_have_no_chart_are_said(tmp_path: Path) -> None:
    write_state(tmp_path, [{"step": step, **{f"m{i}": float(step) for i in range(30)}} for step in (1, 2)])
    section = charted(tmp_path)["other"]
    assert len(section.charts) == 24
    assert section.intro == "The first 24 of 30 metrics; the others are left out."


def test_a_metric_with_a_chart_has_no_other() -> None:
    """`_CHARTED` names every group of charts."""
    groups = [value for value in vars(scalar_charts).values() if isinstance(value, tuple)]
    own = [scalars for group in groups for scalars in group if isinstance(scalars, scalar_charts.Scalars)]
    assert {metric for scalars in own for metric in scalars.metrics.values()} == scalar_charts._CHARTED


def test_decisions_keep_what_can_be_drawn(tmp_path: Path) -> None:
    found = rows(charts(make_run(tmp_path / "a"))["decisions"])
    assert len(found) == 12 and found[0]["branch"] == "first" and found[0]["weight_change"] is None


def test_names_that_files_cannot_have_stay_apart(tmp_path: Path) -> None:
    history = [{"step": step, "a<b": 1.0 * step, "a>b": 2.0 * step} for step in (1, 2)]
    write_state(tmp_path, history)
    assert {chart.title for chart in charts(tmp_path).values()} == {"a<b", "a>b"}


def test_natural_order() -> None:
    assert sorted(["h.10", "h.2", "2.h", "h"], key=natural) == ["2.h", "h", "h.2", "h.10"]


@pytest.mark.parametrize(
    ("values", "logarithmic"),
    [([], False), ([0.0, 5.0], False), ([-1.0, 5.0], False), ([1.0, 20.0], False), ([1.0, 100.0], True)],
)
def test_logarithms_are_for_decades(values: list[float], logarithmic: bool) -> None:
    assert spans_decades(values) == logarithmic


def test_of_many_decades_evenly_spaced_ones_are_labelled() -> None:
    assert value_axis([2e-5, 3e5], logarithmic=True)["values"] == [1e-4, 1e-2, 1, 1e2, 1e4, 1e6]
    assert value_axis([2.0, 3e4], logarithmic=True)["values"] == [1, 10, 1e2, 1e3, 1e4, 1e5]
    assert value_axis([2.0, 30.0], logarithmic=True)["values"] == [1, 2, 5, 10, 20, 50, 100, 200, 500]


def test_final_values_and_the_smallest_evaluation_loss(tmp_path: Path) -> None:
    history = [{"step": i, "eval_loss": loss} for i, loss in enumerate([3.0, 1.0, 2.0])]
    write_state(tmp_path / "a", history, global_step=1200)
    write_state(tmp_path / "b", [{"step": 1, "loss": 0.123456}])
    columns = {column.heading: column.texts() for column in final_values(read_runs([tmp_path / "a", tmp_path / "b"]))}
    assert columns == {
        "steps": ["1,200", "-"],
        "train loss": ["-", "0.1235"],
        "eval loss": ["2", "-"],
        "best eval": ["1", "-"],
    }


def test_differences_of_configuration(tmp_path: Path) -> None:
    paths = [
        make_run(tmp_path / "a"),
        make_run(tmp_path / "b", learning_rate=0.5),
        make_run(tmp_path / "c", info=False),
    ]
    settings = {setting.name: setting for setting in configuration(read_runs(paths))}
    assert settings["learning_rate"].differs and settings["learning_rate"].texts() == ["0.001", "0.5", "-"]
    assert not settings["optim_args"].differs  # of a run that is not known nothing is said
    assert settings["TelemetryCallback.per_layer"].texts()[:2] == ["true", "true"]
    assert settings["trainable_parameters_by_label.weight/attention"].group == "Model"
