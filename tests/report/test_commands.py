"""`hf-pdyn report` and `hf-pdyn compare` as commands."""

import os
import struct
import sys
from pathlib import Path

import pytest

from hf_pdyn import cli
from hf_pdyn.report import page
from hf_pdyn.report.files import write_whole
from tests.report.runs import cut_off, make_run, write_state

pytest.importorskip("vl_convert")
pytestmark = pytest.mark.xdist_group("report")  # one process, which makes the page's scripts once


def test_a_page_and_images_of_two_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = {"records": 2, "spectra": False, "samples": 0, "layers": ("h.0",)}
    paths = [str(make_run(tmp_path / name, seed=i, **small)) for i, name in enumerate("ab")]  # type: ignore[arg-type]
    output, images = tmp_path / "new" / "page.html", tmp_path / "images"
    cli.main(["report", *paths, "-o", str(output), "--png", str(images)])
    written = list(images.iterdir())
    assert capsys.readouterr().out.splitlines() == [str(output), f"{len(written)} charts in {images}"]
    assert {"p.png", "gradients.png", "decisions.png", "layers-weight-ratio-run1.png"} <= {p.name for p in written}
    for path in written:
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG") and struct.unpack(">I", content[16:20])[0] > 800
    assert [path.name for path in output.parent.iterdir()] == ["page.html"]


def test_a_baseline_is_one_of_the_runs_of_the_page(tmp_path: Path) -> None:
    runs = [str(make_run(tmp_path / name, seed=i, records=4)) for i, name in enumerate("abc")]
    output = tmp_path / "page.html"
    for named in (runs, runs[:2]):
        cli.main(["report", *named, "--baseline", runs[2], "-o", str(output)])
        text = output.read_text()
        assert "Report on 3 runs" in text and "Compared with c." in text and "that of c is 0.75" in text
    cli.main(["report", *runs, "-o", str(output)])
    assert "Compared with" not in output.read_text()


def test_problems_are_said_and_the_page_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "[bold]run")
    cut_off(run / "trainer_state.json")
    cli.main(["report", str(run), "-o", str(tmp_path / "page.html")])
    assert "hf-pdyn: [bold]run: trainer_state.json cannot be read" in capsys.readouterr().err
    assert "trainer_state.json cannot be read" in (tmp_path / "page.html").read_text()


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit, match="2"):
        cli.main(list(map(str, arguments)))
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("hf-pdyn: ")
    return error


@pytest.mark.parametrize("command", ["report", "compare"])
def test_no_run_directory_is_one_line(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is no run directory" in refused(capsys, command, tmp_path)


@pytest.mark.parametrize("option", ["-o", "--png"])
def test_what_cannot_be_written_is_one_line(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_state(tmp_path / "run", [{"step": 1, "loss": 1.0}])
    (tmp_path / "run" / "pdyn").mkdir()
    (tmp_path / "file").write_text("kept")
    other = [] if option == "-o" else ["-o", tmp_path / "page.html"]
    with pytest.raises(SystemExit, match="2"):
        cli.main(list(map(str, ["report", tmp_path / "run", *other, option, tmp_path / "file" / "x"])))
    assert "cannot be written" in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "file").read_text() == "kept"


def test_a_directory_is_no_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", records=1)
    assert "it is a directory" in refused(capsys, "report", run, "-o", tmp_path)


@pytest.mark.parametrize("option", ["-o", "--png"])
@pytest.mark.parametrize("kind", ["FIFO", "link"])
def test_only_regular_files_are_replaced(
    option: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", records=1, samples=0, spectra=False, layers=())
    target = tmp_path / "kept"
    target.write_text("kept")
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / "p.png"
    os.mkfifo(path) if kind == "FIFO" else path.symlink_to(target)
    before = os.lstat(path)
    where = [path] if option == "-o" else [path.parent, "-o", tmp_path / "page.html"]
    with pytest.raises(SystemExit, match="2"):
        cli.main(list(map(str, ["report", run, option, *where])))
    assert f"it is a {kind}" in capsys.readouterr().err.splitlines()[-1]
    assert os.path.samestat(os.lstat(path), before) and target.read_text() == "kept"


def test_a_device_is_not_replaced(tmp_path: Path) -> None:
    before = os.lstat(os.devnull)
    with pytest.raises(OSError, match="it is a device"):
        write_whole(Path(os.devnull), b"")
    assert os.path.samestat(os.lstat(os.devnull), before)


def test_a_failed_page_leaves_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, output = make_run(tmp_path / "run", records=1), tmp_path / "page.html"
    output.write_text("before")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hf_pdyn.common.atomic.os.replace", fail)
    assert "No space left on device" in refused(capsys, "report", run, "-o", output)
    assert output.read_text() == "before" and {path.name for path in tmp_path.iterdir()} == {"run", "page.html"}


def test_a_missing_library_is_one_line_with_the_cure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    page._library.cache_clear()
    assert "pip install 'hf-pdyn[report]'" in refused(capsys, "report", make_run(tmp_path / "run", records=1))


def test_a_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    paths = [make_run(tmp_path / "[red]a"), make_run(tmp_path / "b", learning_rate=0.5, finished=False)]
    cli.main(["compare", *map(str, paths)])
    output = capsys.readouterr().out
    cells = {line.split()[0]: line.split()[1:] for line in output.splitlines() if line.strip()}
    assert "[red]a" in output and "not finished (step 120 of 120)" in output
    assert cells["steps"] == ["120", "120"]
    assert cells["learning_rate"] == ["0.001", "0.5"]
    assert "optim_args" not in output


def test_a_comparison_has_the_last_complete_record_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    runs = [make_run(tmp_path / "[red]a", remainder=1), make_run(tmp_path / "b")]
    cli.main(["compare", *map(str, runs)])
    output = " ".join(capsys.readouterr().out.split())
    assert "7.5" not in output
    assert "means of the record at step 120" in output and "at step 121, covers 1 step only ([red]a)" in output


def test_a_comparison_of_many_runs_cuts_no_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    paths = [make_run(tmp_path / f"run{i}", records=4) for i in range(6)]
    cli.main(["compare", *map(str, paths)])
    output = capsys.readouterr().out
    assert "…" not in output and "No setting differs." in output and output.count("run") >= 6
