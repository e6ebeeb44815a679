from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from _common.cache import built_once
from _common.pretrained import PretrainingSettings, pydoc_checkpoint, train_tokenizer

TINY = PretrainingSettings(vocab_size=300, n_layer=1, n_embd=16, n_head=2, n_positions=32, block_size=16, steps=2)


def test_an_interrupted_build_leaves_nothing_and_the_next_one_succeeds(tmp_path: Path) -> None:
    target = tmp_path / "cache" / "made"

    def interrupted(directory: Path) -> None:
        (directory / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        built_once(target, interrupted)
    assert [path.name for path in target.parent.iterdir() if path.suffix != ".lock"] == []
    built_once(target, lambda directory: (directory / "whole").touch())
    assert [path.name for path in target.iterdir()] == ["whole"]


def test_what_a_killed_build_left_is_swept_away(tmp_path: Path) -> None:
    (tmp_path / "made.partial").mkdir()
    (tmp_path / "made.partial" / "stale").touch()
    built_once(tmp_path / "made", lambda directory: (directory / "whole").touch())
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["whole"]


def test_a_second_call_builds_nothing(tmp_path: Path) -> None:
    calls: list[Path] = []
    assert built_once(tmp_path / "made", calls.append) == built_once(tmp_path / "made", calls.append)
    assert len(calls) == 1


def test_fingerprint_names_the_settings() -> None:
    assert TINY.fingerprint() == replace(TINY).fingerprint()
    assert TINY.fingerprint() != replace(TINY, steps=3).fingerprint()


def test_checkpoint_is_an_ordinary_one_and_is_made_once(tmp_path: Path) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    directory = pydoc_checkpoint(TINY, tmp_path, show_progress=False)
    assert torch.equal(torch.get_rng_state(), state), "a cached checkpoint must change no draw"
    written = (directory / "model.safetensors").stat().st_mtime_ns
    assert pydoc_checkpoint(TINY, tmp_path, show_progress=False) == directory
    assert (directory / "model.safetensors").stat().st_mtime_ns == written

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    text = "The plays'\nthe thing: caf\u00e9 \u4e2d  (two  spaces)\n\n"
    assert len(tokenizer) == model.config.vocab_size == 300
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == model.config.eos_token_id
    assert model(input_ids=torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 300)


def test_saved_tokenizer_encodes_as_the_trained_one(tmp_path: Path) -> None:
    tokenizer = train_tokenizer("so shaken as we are, so wan with care " * 20, 280, 32)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded("so wan, so shaken")["input_ids"] == tokenizer("so wan, so shaken")["input_ids"]
