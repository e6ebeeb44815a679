import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import trainer_utils

from hf_pdyn import last_complete_checkpoint
from hf_pdyn.run_dir.checkpoints import incompleteness


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "checkpoint-4")


def write_checkpoint(folder: Path) -> Path:
    folder.mkdir()
    save_file({"a": torch.ones(50), "b": torch.ones(3)}, folder / "model.safetensors", metadata={"format": "pt"})
    torch.save({"state": torch.ones(50)}, folder / "optimizer.pt")
    torch.save({"state": torch.ones(3)}, folder / "rng_state.pth")
    torch.save({"args": 1}, folder / "training_args.bin")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 4}))
    return folder


def test_a_whole_checkpoint(checkpoint: Path) -> None:
    assert incompleteness(checkpoint) is None


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "training_args.bin", "trainer_state.json"]
)
def test_any_part_of_a_file_is_cut_off(checkpoint: Path, name: str) -> None:
    whole = (checkpoint / name).read_bytes()
    for length in {*range(0, len(whole), 7), len(whole) - 1}:
        (checkpoint / name).write_bytes(whole[:length])
        assert incompleteness(checkpoint) == f"{name} is cut off", length


def test_the_state_is_written_last(checkpoint: Path) -> None:
    (checkpoint / "trainer_state.json").unlink()
    assert incompleteness(checkpoint) == "no trainer_state.json"


def test_a_checkpoint_of_the_model_alone_is_whole(checkpoint: Path) -> None:
    (checkpoint / "optimizer.pt").unlink()
    (checkpoint / "rng_state.pth").unlink()
    assert incompleteness(checkpoint) is None


def test_shards_are_looked_at_and_other_formats_are_not(checkpoint: Path) -> None:
    shards = checkpoint / "global_step4"
    shards.mkdir()
    torch.save({"state": torch.ones(3)}, shards / "mp_rank_00_model_states.pt")
    torch.save({"state": torch.ones(3)}, shards / "old.pt", _use_new_zipfile_serialization=False)
    (shards / "__0_0.distcp").write_bytes(b"PK\x03\x04")
    (shards / "numbers.bin").write_bytes(bytes(range(100)))
    assert incompleteness(checkpoint) is None
    whole = (shards / "mp_rank_00_model_states.pt").read_bytes()
    (shards / "mp_rank_00_model_states.pt").write_bytes(whole[:-30])
    assert incompleteness(checkpoint) == f"{Path('global_step4', 'mp_rank_00_model_states.pt')} is cut off"


def test_the_newest_whole_checkpoint_is_chosen(tmp_path: Path) -> None:
    for step in (4, 9, 10, 11):
        write_checkpoint(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-12").write_text("a file")
    (tmp_path / "checkpoint-13-old").mkdir()
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-11")
    (tmp_path / "checkpoint-11" / "trainer_state.json").unlink()
    (tmp_path / "checkpoint-10" / "optimizer.pt").write_bytes(b"PK\x03\x04")
    with pytest.warns(UserWarning, match="Incomplete checkpoints") as caught:
        assert last_complete_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-9")
    (warning,) = caught
    assert (
        "checkpoint-11 (no trainer_state.json), checkpoint-10 (optimizer.pt is cut off); checkpoint-9 is used"
        in str(warning.message)
    )


def test_no_whole_checkpoint_is_no_checkpoint(tmp_path: Path) -> None:
    assert last_complete_checkpoint(tmp_path / "not_there") is None
    assert last_complete_checkpoint(tmp_path) is None
    (tmp_path / "checkpoint-4").mkdir()
    with pytest.warns(UserWarning, match="no other is left"):
        assert last_complete_checkpoint(tmp_path) is None


def stored_safetensors(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


def with_a_second_disk(archive: bytes) -> bytes:
    """A zip64 archive that says it spans several disks."""
    locator = b"PK\x06\x07" + struct.pack("<LQL", 1, 0, 2)
    return archive[:-22] + locator + archive[-22:]


DAMAGE: dict[str, tuple[str, Any, str]] = {
    "a list for the state": ("trainer_state.json", b"[]", "trainer_state.json has no global_step"),
    "a state without its step": ("trainer_state.json", b"{}", "trainer_state.json has no global_step"),
    "a step that is no number": (
        "trainer_state.json",
        b'{"global_step": "4"}',
        "trainer_state.json has no global_step",
    ),
    "no UTF-8": ("trainer_state.json", b'{"global_step": "\xff"}', "trainer_state.json is cut off"),
    "nested for ever": ("trainer_state.json", b"[" * 100_000, "trainer_state.json is damaged"),
    "a folder for the state": ("trainer_state.json", None, "trainer_state.json is not a file"),
    "a folder for the weights": ("model.safetensors", None, "model.safetensors is not a file"),
    "a folder for the optimizer": ("optimizer.pt", None, "optimizer.pt is not a file"),
    "a list for the header": ("model.safetensors", stored_safetensors(b"[]"), "model.safetensors is damaged"),
    "no offsets": ("model.safetensors", stored_safetensors(b'{"a": {}}'), "model.safetensors is damaged"),
    "a number for a tensor": ("model.safetensors", stored_safetensors(b'{"a": 1}'), "model.safetensors is damaged"),
    "a nested header": ("model.safetensors", stored_safetensors(b"[" * 100_000), "model.safetensors is damaged"),
    "a zip of two disks": ("optimizer.pt", with_a_second_disk, "optimizer.pt is damaged"),
    "a zip's directory": (
        "optimizer.pt",
        lambda whole: whole[:-200] + bytes(100) + whole[-100:],
        "optimizer.pt is damaged",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_any_damage_is_a_reason_and_an_older_checkpoint_is_found(tmp_path: Path, name: str) -> None:
    older, newer = (write_checkpoint(tmp_path / f"checkpoint-{step}") for step in (4, 8))
    file, content, reason = DAMAGE[name]
    whole = (newer / file).read_bytes()
    (newer / file).unlink()
    if content is None:
        (newer / file).mkdir()
    else:
        (newer / file).write_bytes(content(whole) if callable(content) else content)
    assert incompleteness(newer) == reason
    with pytest.warns(UserWarning, match="checkpoint-4 is used"):
        assert last_complete_checkpoint(tmp_path) == str(older)


def test_a_pipe_is_not_waited_for(checkpoint: Path) -> None:
    (checkpoint / "trainer_state.json").unlink()
    os.mkfifo(checkpoint / "trainer_state.json")
    assert incompleteness(checkpoint) == "trainer_state.json is not a file"


def test_importing_us_leaves_the_trainer_s_own_choice_alone() -> None:
    assert not hasattr(trainer_utils.get_last_checkpoint, "replaced_by_hf_pdyn")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_a_reason_in_words_or_is_not_seen(checkpoint: Path, data: st.DataObject) -> None:
    """Nothing is raised, and a file that is cut off is seen. A changed byte inside a tensor shows nowhere."""
    path = data.draw(st.sampled_from(sorted(path for path in checkpoint.iterdir() if path.is_file())))
    whole = path.read_bytes()
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    flips = data.draw(st.integers(0, 4)) if damaged else 0
    for _ in range(flips):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    try:
        reason = incompleteness(checkpoint)
        assert reason is None or path.name in reason
        assert reason is not None or flips or len(damaged) == len(whole)
    finally:
        path.write_bytes(whole)
