"""Text from a file, from the hub or from this repository, as blocks of tokens."""

import lzma
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from .entry_point import RecipeError
from .hub_data import check_column, load_splits

PLAYS_FILE = Path(__file__).resolve().parent.parent / "data" / "shakespeare_plays.txt.xz"
_TEXTS_PER_CALL = 1000


@dataclass(frozen=True)
class Corpus:
    """Texts to train on; without validation texts the end of the training texts is held out."""

    name: str
    train: Iterable[str]
    validation: Iterable[str] | None = None


class TokenBlocks(Dataset[dict[str, torch.Tensor]]):
    """Blocks of equal length for causal language modelling; the model itself shifts the labels."""

    def __init__(self, blocks: torch.Tensor) -> None:
        self.blocks = blocks

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.blocks[index], "labels": self.blocks[index]}

    def first(self, count: int | None) -> "TokenBlocks":
        """Return the first ``count`` blocks, or all of them for None."""
        return TokenBlocks(self.blocks[:count])


def plays() -> Corpus:
    """Return the plays shipped in ``recipes/data``."""
    return Corpus("plays of William Shakespeare (embedded)", [read_text(PLAYS_FILE)])


def text_files(train_file: str, validation_file: str | None) -> Corpus:
    """Return the text of one file, or of two."""
    validation = None if validation_file is None else [read_text(Path(validation_file))]
    return Corpus(train_file, [read_text(Path(train_file))], validation)


def hub_dataset(name: str, config: str | None, column: str) -> Corpus:
    """Return the ``train`` split of a dataset and, where it exists, its ``validation`` split."""
    cure = "check both names and the network, or use --train_file"
    splits = load_splits("--dataset_name", name, cure, name, config)
    check_column("--text_column", column, splits["train"], name)
    validation = splits["validation"][column] if "validation" in splits else None
    return Corpus(name, splits["train"][column], validation)


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, compressed where its name ends in ``.xz``."""
    opener = lzma.open if path.suffix == ".xz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        cause = error.strerror or error
        raise RecipeError(f"a data file must be readable, got {str(path)!r} ({cause})") from error
    except (UnicodeDecodeError, lzma.LZMAError) as error:
        raise RecipeError(f"a data file must be UTF-8 text, got {str(path)!r}: {error}") from error


def train_and_validation(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    validation_fraction: float,
) -> tuple[TokenBlocks, TokenBlocks]:
    """Cut a corpus into training and validation blocks.

    Without validation texts the last ``validation_fraction``, between 0 and 1, of the blocks is held out: by
    position, since neighbouring blocks of one scene would leak into each other.
    """
    train = blocks_of(corpus.train, tokenizer, block_size)
    if corpus.validation is not None:
        _require(1, train, block_size, f"training text {corpus.name!r}")
        validation = blocks_of(corpus.validation, tokenizer, block_size)
        _require(1, validation, block_size, f"validation text of {corpus.name!r}")
    else:
        _require(2, train, block_size, f"text {corpus.name!r} (one block is held out)")
        held_out = min(len(train) - 1, max(1, round(validation_fraction * len(train))))
        train, validation = train[:-held_out], train[-held_out:]
    return TokenBlocks(train), TokenBlocks(validation)


def blocks_of(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, block_size: int) -> torch.Tensor:
    """Tokenise, concatenate and cut into rows of ``block_size``; the incomplete rest is dropped."""
    if block_size < 2:
        raise RecipeError(f"--block_size must be at least 2, to predict a token, got {block_size}")
    pieces = [
        torch.tensor(token_ids, dtype=torch.long)
        for batch in _batches(texts, _TEXTS_PER_CALL)
        for token_ids in tokenizer(batch, return_attention_mask=False, verbose=False)["input_ids"]
    ]
    stream = torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.long)
    count = len(stream) // block_size
    return stream[: count * block_size].view(count, block_size)


def _batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    remaining = iter(texts)
    while batch := list(islice(remaining, size)):
        yield batch


def _require(count: int, blocks: torch.Tensor, block_size: int, what: str) -> None:
    if len(blocks) < count:
        raise RecipeError(
            f"the {what} must fill at least {count} block(s) of {block_size} tokens, got"
            f" {len(blocks)}; give more text or a smaller --block_size"
        )
