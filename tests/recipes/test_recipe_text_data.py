import hashlib
import lzma
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from _common.entry_point import RecipeError
from _common.pretrained import train_tokenizer
from _common.text_data import (
    PLAYS_FILE,
    Corpus,
    blocks_of,
    plays,
    read_text,
    text_files,
    train_and_validation,
)

TEXT = "the quality of mercy is not strained, it droppeth as the gentle rain from heaven. " * 40


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXT, vocab_size=300, max_length=64)


def test_blocks_are_the_token_stream_cut_in_order(tokenizer: PreTrainedTokenizerFast) -> None:
    stream = torch.tensor(tokenizer(TEXT)["input_ids"])
    blocks = blocks_of([TEXT], tokenizer, block_size=16)
    assert blocks.shape == (len(stream) // 16, 16)
    assert torch.equal(blocks.flatten(), stream[: blocks.numel()])


def test_texts_are_joined_before_they_are_cut(tokenizer: PreTrainedTokenizerFast) -> None:
    lines = ["mercy is", " not strained"] * 1100  # more than one call of the tokenizer
    tokens_a_pair = sum(len(tokenizer(line)["input_ids"]) for line in lines[:2])
    assert blocks_of(lines, tokenizer, 10).shape[0] == tokens_a_pair * 1100 // 10


def test_last_blocks_are_held_out(tokenizer: PreTrainedTokenizerFast) -> None:
    every = blocks_of([TEXT], tokenizer, 16)
    train, validation = train_and_validation(Corpus("t", [TEXT]), tokenizer, 16, 0.25)
    assert len(validation) == round(0.25 * len(every))
    assert torch.equal(torch.cat([train.blocks, validation.blocks]), every)
    assert torch.equal(validation[0]["input_ids"], every[len(train)])
    assert len(train.first(3)) == 3
    assert len(train.first(None)) == len(train)


def test_the_cut_is_the_same_every_time(tokenizer: PreTrainedTokenizerFast) -> None:
    first, second = (train_and_validation(Corpus("t", [TEXT]), tokenizer, 16, 0.1) for _ in range(2))
    assert torch.equal(first[0].blocks, second[0].blocks)
    assert torch.equal(first[1].blocks, second[1].blocks)


def test_validation_text_of_its_own_leaves_the_training_text_whole(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    (tmp_path / "train.txt").write_text(TEXT)
    (tmp_path / "validation.txt").write_text(TEXT[:800])
    corpus = text_files(str(tmp_path / "train.txt"), str(tmp_path / "validation.txt"))
    train, validation = train_and_validation(corpus, tokenizer, 16, 0.1)
    assert torch.equal(train.blocks, blocks_of([TEXT], tokenizer, 16))
    assert torch.equal(validation.blocks, blocks_of([TEXT[:800]], tokenizer, 16))


def test_too_little_text_says_how_much_is_needed(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(RecipeError, match=r"at least 2 block\(s\) of 16 tokens, got 0.*smaller"):
        train_and_validation(Corpus("short", ["mercy"]), tokenizer, 16, 0.1)
    with pytest.raises(RecipeError, match="validation text of 'short' must fill at least 1"):
        train_and_validation(Corpus("short", [TEXT], ["mercy"]), tokenizer, 16, 0.1)
    with pytest.raises(RecipeError, match="got 0"):
        blocks_of([], tokenizer, 0)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"absent\.txt' .No such file"):
        read_text(tmp_path / "absent.txt")
    (tmp_path / "latin.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(RecipeError, match="UTF-8"):
        read_text(tmp_path / "latin.txt")
    (tmp_path / "broken.xz").write_bytes(b"not compressed")
    with pytest.raises(RecipeError, match=r"broken\.xz"):
        read_text(tmp_path / "broken.xz")


def test_the_plays_are_the_text_that_their_note_describes() -> None:
    note = (PLAYS_FILE.parent / "README.md").read_text()
    text = lzma.decompress(PLAYS_FILE.read_bytes())
    assert hashlib.sha256(text).hexdigest() in note
    assert f"{len(text):,} bytes" in note
    assert list(plays().train) == [text.decode("ascii")]
