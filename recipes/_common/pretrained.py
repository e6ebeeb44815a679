"""The default checkpoint: a small GPT-2 and its tokenizer, made here, with no network.

Its text is the language reference that every Python ships for ``help()``: half a megabyte of
English prose and code.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from hf_pdyn.common import environment

from .cache import built_once
from .pretraining import LoopSettings, pretrain, random_numbers_apart
from .text_data import blocks_of

END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class PretrainingSettings(LoopSettings):
    """Everything that decides the checkpoint, and so its place in the cache."""

    # Small enough that this little text trains every token: with 4096, other texts are full of
    # tokens that it never saw (3.8 bits a character on the plays after LoRA, against 3.4).
    vocab_size: int = 1024
    n_layer: int = 4
    n_embd: int = 128
    n_head: int = 4
    n_positions: int = 256
    block_size: int = 128
    learning_rate: float = 2e-3
    # 3e-3 with a warmup of 0.05 (and dropout) was still at a loss of 5.4 after 400 steps, where this had 4.3.
    warmup_fraction: float = 0.2
    # Dropout of 0.1 made a step nearly half as long again on a CPU.
    dropout: float = 0.0


def pydoc_checkpoint(
    settings: PretrainingSettings,
    cache_dir: Path | None = None,
    device: torch.device | str = "cpu",
    show_progress: bool = True,
) -> Path:
    """Return the directory of the checkpoint, pretraining it on the first call."""
    # The text is not the same in every Python.
    directory = (cache_dir or environment.cache_dir()) / f"gpt2-pydoc-{settings.fingerprint(prose())}"
    build = functools.partial(_build, settings=settings, device=torch.device(device), show_progress=show_progress)
    return built_once(directory, build)


def prose() -> str:
    """Return the text of ``help()``'s topics."""
    return "\n\n".join(topics[name] for name in sorted(topics))


def train_tokenizer(text: str, vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE: no text is out of its vocabulary."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        [text],
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    # Not GPT2TokenizerFast(vocab_file=...): transformers 5 ignores that name without a word and
    # returns a tokenizer of one token.
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def _build(directory: Path, settings: PretrainingSettings, device: torch.device, show_progress: bool) -> None:
    tokenizer = train_tokenizer(prose(), settings.vocab_size, settings.n_positions)
    blocks = blocks_of([prose()], tokenizer, settings.block_size)
    with random_numbers_apart(settings.seed, device):
        model = _new_model(settings, tokenizer).to(device)
        pretrain(
            model,
            len(blocks),
            lambda rows: {"input_ids": blocks[rows], "labels": blocks[rows]},
            settings,
            show_progress,
        )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _new_model(settings: PretrainingSettings, tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    end_of_text = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_layer=settings.n_layer,
        n_embd=settings.n_embd,
        n_head=settings.n_head,
        n_positions=settings.n_positions,
        embd_pdrop=settings.dropout,
        attn_pdrop=settings.dropout,
        resid_pdrop=settings.dropout,
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
        pad_token_id=end_of_text,
    )
    model = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"  # what it takes anyway; unsaid, transformers warns (5.23)
    return model
