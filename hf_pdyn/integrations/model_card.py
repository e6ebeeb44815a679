"""What we need of the Trainer's model card (tried with transformers 5.2 to 5.23)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_pdyn.common.atomic import replacing

_BEGIN, _END = "<!-- hf_pdyn: begin -->", "<!-- hf_pdyn: end -->"
_SECTION = "_pdyn_model_card"


def add_to_model_card(trainer: Any | None, section: Callable[[], str | None]) -> None:
    """Have `trainer.create_model_card` add `section()` to the card that it writes. A later call replaces the section.

    On the instance, so that it holds for a subclass's own `create_model_card` (TRL's). A Trainer without one has no
    card, and nothing is added.

    Args:
        trainer: the Trainer whose event is being delivered; None where something else delivers it.
        section: Markdown, made when the card is written; None for none.
    """
    create = getattr(trainer, "create_model_card", None)
    if trainer is None or create is None:
        return
    known = _SECTION in vars(trainer)
    setattr(trainer, _SECTION, section)
    if known:
        return

    def create_model_card(*args: Any, **kwargs: Any) -> Any:
        created = create(*args, **kwargs)
        path = Path(trainer.args.output_dir, "README.md")
        if trainer.is_world_process_zero() and path.is_file():
            try:
                _put_section(path, getattr(trainer, _SECTION)())
            except (OSError, ValueError) as error:
                warnings.warn(f"hf_pdyn could not add to {path}: {error}. The card is as it was.", stacklevel=2)
        return created

    trainer.create_model_card = create_model_card


def _put_section(path: Path, section: str | None) -> None:
    card = _without_section(path.read_text(encoding="utf-8"))
    if section is not None:
        card = f"{card.rstrip()}\n\n{_BEGIN}\n{section.strip()}\n{_END}\n"
    with replacing(path) as unfinished:
        unfinished.write_text(card, encoding="utf-8")


def _without_section(card: str) -> str:
    """The card without what an earlier call added: PEFT goes on from the file that it finds."""
    before, begin, rest = card.partition(_BEGIN)
    return before + rest.partition(_END)[2] if begin else card
