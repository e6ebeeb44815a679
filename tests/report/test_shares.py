"""The table of shares: its lines, and what it shows of several runs."""

from pathlib import Path

import pytest
from rich.console import Console

from hf_pdyn.grouping import COMPONENTS, PATHWAYS
from hf_pdyn.report.charts import sections
from hf_pdyn.report.reading import read_runs
from hf_pdyn.report.recorded_run import RecordedRun
from hf_pdyn.report.shares import percent, shares
from hf_pdyn.report.terminal import comparison
from tests.report.runs import make_run, write_state

VIT = {
    "weight/head": (0.2, 0.3),
    "weight/lora_A": (0.4, 0.1),
    "bias_like/norm": (0.3, 0.55),
    "bias_like/head": (0.1, 0.05),
}
GPT2 = {"weight/lora_A": (1.0, 1.0)}


def run(path: Path, labels: dict[str, tuple[float, float]]) -> RecordedRun:
    """Shares of these labels in a complete record; in the closing one, of a single step, others."""
    names = {
        f"pdyn/by_label/{label}/{of}_share": value
        for label, both in labels.items()
        for of, value in zip(("grad", "update"), both, strict=True)
    }
    complete = [{"step": step, "pdyn/steps": 10, **names} for step in (10, 20)]
    write_state(path, [*complete, {"step": 21, "pdyn/steps": 1, **dict.fromkeys(names, 0.123)}])
    return read_runs([path])[0]


def lines(*runs: RecordedRun) -> dict[str, tuple[tuple[float | None, ...], tuple[float | None, ...]]]:
    return {line.name: (line.gradient, line.update) for line in shares(runs)}


def test_pathways_add_up_their_components_and_head_stands_against_backbone(tmp_path: Path) -> None:
    found = lines(run(tmp_path, VIT))
    expected = {
        "weight": (0.6, 0.4),
        "weight/lora_A": (0.4, 0.1),
        "weight/head": (0.2, 0.3),
        "bias_like": (0.4, 0.6),
        "bias_like/norm": (0.3, 0.55),
        "bias_like/head": (0.1, 0.05),
        "backbone": (0.7, 0.65),
        "head": (0.3, 0.35),
    }
    assert list(found) == list(expected)
    for name, both in expected.items():
        assert [value for (value,) in found[name]] == pytest.approx(both)


def test_a_run_without_a_label_has_no_share_of_it(tmp_path: Path) -> None:
    found = lines(run(tmp_path / "vit", VIT), run(tmp_path / "gpt2", GPT2))
    assert {name: gradient[1] for name, (gradient, _) in found.items()} == dict.fromkeys(found, None) | {
        "weight": 1.0,
        "weight/lora_A": 1.0,
    }


def test_without_a_head_there_is_no_backbone(tmp_path: Path) -> None:
    assert list(lines(run(tmp_path, GPT2))) == ["weight", "weight/lora_A"]


def test_a_model_that_is_all_head_has_no_backbone(tmp_path: Path) -> None:
    assert list(lines(run(tmp_path, {"weight/head": (1.0, 1.0)}))) == ["weight", "weight/head"]


def test_gradients_are_known_where_updates_are_not(tmp_path: Path) -> None:
    write_state(tmp_path, [{"step": 10, "pdyn/by_label/weight/mlp/grad_share": 1.0}])
    assert lines(*read_runs([tmp_path]))["weight"] == ((1.0,), (None,))


def test_every_label_has_its_line(tmp_path: Path) -> None:
    labels = [f"{pathway}/{component}" for pathway in PATHWAYS for component in COMPONENTS]
    found = lines(run(tmp_path, dict.fromkeys(labels, (1 / 18, 1 / 18))))
    assert [name for name in found if "/" in name] == labels


def test_a_run_without_shares_has_no_table(tmp_path: Path) -> None:
    write_state(tmp_path, [{"step": 1, "loss": 1.0, "pdyn/by_label/weight/p": 0.4}])
    runs = read_runs([tmp_path])
    assert shares(runs) == [] and "Shares" not in printed(runs)


@pytest.mark.parametrize(
    ("share", "text"),
    [(None, "-"), (0.0, "0.0 %"), (1e-9, "<0.1 %"), (0.0005, "0.1 %"), (0.4239, "42.4 %"), (1.0, "100.0 %")],
)
def test_percent(share: float | None, text: str) -> None:
    assert percent(share) == text


def printed(runs: list[RecordedRun]) -> str:
    console = Console(width=300)
    with console.capture() as captured:
        console.print(*comparison(runs))
    return captured.get()


def cells(output: str, name: str) -> list[str]:
    """The cells of the first row of this name in the table of shares."""
    table = output[output.index("Shares") :]
    return next(line.split()[1:] for line in table.splitlines() if line.split()[:1] == [name])


def test_runs_side_by_side(tmp_path: Path) -> None:
    output = printed([run(tmp_path / "vit", VIT), run(tmp_path / "[b]gpt2", GPT2)])
    assert "[b]gpt2" in output
    assert cells(output, "lora_A") == ["40.0", "%", "10.0", "%", "100.0", "%", "100.0", "%"]
    assert cells(output, "backbone") == ["70.0", "%", "65.0", "%", "-", "-"]


def test_many_runs_have_a_row_each(tmp_path: Path) -> None:
    output = printed([*(run(tmp_path / f"v{i}", VIT) for i in range(4)), run(tmp_path / "gpt2", GPT2)])
    assert cells(output, "v0")[:6] == ["60.0", "/", "40.0", "40.0", "/", "10.0"]
    assert cells(output, "gpt2") == ["100.0", "/", "100.0"] * 2 + ["-", "/", "-"] * 6


def test_a_whole_run_has_the_table(tmp_path: Path) -> None:
    assert list(lines(*read_runs([make_run(tmp_path / "a")]))) == [
        "weight",
        "weight/attention",
        "bias_like",
        "bias_like/norm",
    ]


def test_parts_of_the_trained_parameters_stand_beside_them(tmp_path: Path) -> None:
    found = {line.name: line.parameters for line in shares(read_runs([make_run(tmp_path / "a")]))}
    assert found == {"weight": (0.8,), "weight/attention": (0.8,), "bias_like": (0.2,), "bias_like/norm": (0.2,)}
    assert {line.parameters for line in shares([run(tmp_path / "b", GPT2)])} == {(None,)}


def test_named_groups_have_lines_and_charts(tmp_path: Path) -> None:
    names = [f"group{i}" for i in range(6)]
    metrics = {f"pdyn/by_group/{name}/{of}_share": 0.1 for name in names for of in ("grad", "update")}
    write_state(tmp_path, [{"step": step, "pdyn/steps": 10, **metrics} for step in (10, 20)])
    (recorded,) = read_runs([tmp_path])
    found = lines(recorded)
    assert [found[f"group {name}"] for name in names] == [((0.1,), (0.1,))] * 6
    (section,) = [section for section in sections([recorded])[0] if section.key == "groups"]
    assert [chart.key for chart in section.charts] == ["group_grad_share", "group_update_share"]
    assert "2 more are in the table" in section.intro
