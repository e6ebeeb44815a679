import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers.trainer
from safetensors.torch import save_file
from transformers import trainer_utils

import hf_pdyn
from hf_pdyn.run_dir.checkpoints import incompleteness
from tests.training import trainer


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
    assert trainer_utils.get_last_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-11")
    (tmp_path / "checkpoint-11" / "trainer_state.json").unlink()
    (tmp_path / "checkpoint-10" / "optimizer.pt").write_bytes(b"PK\x03\x04")
    with pytest.warns(UserWarning, match="Incomplete checkpoints") as caught:
        assert trainer_utils.get_last_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-9")
    (warning,) = caught
    assert (
        "checkpoint-11 (no trainer_state.json), checkpoint-10 (optimizer.pt is cut off); checkpoint-9 is used"
        in str(warning.message)
    )


def test_no_whole_checkpoint_is_no_checkpoint(tmp_path: Path) -> None:
    assert trainer_utils.get_last_checkpoint(str(tmp_path)) is None
    (tmp_path / "checkpoint-4").mkdir()
    with (
        pytest.warns(UserWarning, match="no other is left"),
        pytest.raises(ValueError, match="No valid checkpoint found"),
    ):
        trainer(tmp_path).train(resume_from_checkpoint=True)


def test_the_trainer_asks_ours_once_wrapped() -> None:
    ours = trainer_utils.get_last_checkpoint
    assert transformers.trainer.get_last_checkpoint is ours
    hf_pdyn.register()
    assert trainer_utils.get_last_checkpoint is ours


def test_a_trainer_imported_before_us_asks_ours_too() -> None:
    code = (
        "import transformers.trainer, hf_pdyn, transformers.trainer_utils as utils;"
        "assert transformers.trainer.get_last_checkpoint.replaced_by_hf_pdyn;"
        "assert utils.get_last_checkpoint is transformers.trainer.get_last_checkpoint"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
