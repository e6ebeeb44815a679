"""How often a callback acts: a number of optimizer steps, or a word such as `epoch`."""

from __future__ import annotations

from hf_pdyn.common.errors import did_you_mean

_DECISIONS = 20
_FEWEST_STEPS = 10


def parse_interval(name: str, value: int | str, *words: str) -> int | str:
    """`value` as one of `words` or as a number of optimizer steps >= 1, which may be text; else ValueError."""
    if value in words:
        return value
    text = str(value)
    steps = int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0
    if steps < 1:
        raise ValueError(
            f"{name} must be {', '.join(words)} or a number of optimizer steps >= 1, got {value!r}."
            f"{did_you_mean(text, words)}"
        )
    return steps


def auto_interval(total_steps: int) -> int:
    """Steps between decisions: about 20 decisions in a training of `total_steps`, at least 10 steps each.

    The means of fewer steps would follow the noise of single batches.
    """
    return max(_FEWEST_STEPS, round(total_steps / _DECISIONS))


def useful_decisions(total_steps: int, interval: int, *, only_observes_first: bool) -> int:
    """How many decisions can change a step: none follows the end of training, and perhaps none the first interval."""
    return max(0, (total_steps - 1) // interval - only_observes_first)
