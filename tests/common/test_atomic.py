"""Files that are written whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_pdyn.common.atomic import read_regular, replacing, sweep


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda path: path.mkdir(), "a directory"),
        (lambda path: path.symlink_to("target"), "a link"),
        (lambda path: path.symlink_to("nowhere"), "a link"),
        (lambda path: os.mkfifo(path), "a FIFO"),
    ],
    ids=["directory", "link", "dangling link", "FIFO"],
)
def test_only_a_regular_file_is_replaced(tmp_path: Path, make: object, kind: str) -> None:
    (tmp_path / "target").write_text("kept")
    path = tmp_path / "path"
    make(path)  # type: ignore[operator]
    before = os.lstat(path)
    with pytest.raises(OSError, match=f"it is {kind}"), replacing(path) as unfinished:
        unfinished.write_text("new")
    assert os.path.samestat(os.lstat(path), before) and (tmp_path / "target").read_text() == "kept"
    assert {path.name for path in tmp_path.iterdir()} == {"target", "path"}


def test_a_fifo_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    for name in ("fifo", "link"):
        with pytest.raises(OSError, match="a FIFO"):
            read_regular(tmp_path / name)


def test_a_killed_process_s_file_is_swept_once_it_is_dead(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from hf_pdyn.common.atomic import replacing\n"
        "with replacing(Path(sys.argv[1])) as unfinished:\n"
        "    unfinished.write_text('half'); print(unfinished, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "x.parquet")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        try:
            unfinished = Path(writer.stdout.readline().strip())
            sweep(tmp_path, ".parquet")
            assert unfinished.read_text() == "half"
        finally:
            writer.kill()
    sweep(tmp_path, ".json")
    assert unfinished.exists()
    sweep(tmp_path, ".parquet")
    assert not unfinished.exists()
