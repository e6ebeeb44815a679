"""How far below the top of a model its parameters stand, for learning rates that fall with depth."""

from __future__ import annotations

from collections.abc import Sequence


def depths(names: Sequence[str]) -> list[int]:
    """The number of layers from the top down to each parameter.

    Layers are the numbered children of one module list (`h.0`, `h.1`, ...). Of L layers, layer i is L - i deep; what
    comes before the first (embeddings) is L + 1 deep, what comes after (final norm, head) 0.

    Args:
        names: canonical names in the model's order.

    Raises:
        ValueError: where there are no numbered layers, or more than one list of them (two towers, encoder and decoder).
    """
    stacks: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        numbered = _numbered(name)
        if numbered is not None:
            stacks.setdefault(numbered[0], []).append(i)
    if not stacks:
        raise ValueError(f"no numbered layers are in the names, such as h.0: there are {', '.join(names[:3])}, ...")
    largest = max(stacks, key=lambda stack: len(stacks[stack]))
    rivals = [stack for stack, members in stacks.items() if 2 * len(members) >= len(stacks[largest])]
    if len(rivals) > 1:
        raise ValueError(f"there are several lists of layers, {' and '.join(rivals)}: write a rule for each")
    members = set(stacks[largest])
    numbers = sorted({_number_of(names[i]) for i in members})
    rank = {number: i for i, number in enumerate(numbers)}
    first = min(members)
    return [
        len(numbers) - rank[_number_of(name)] if i in members else len(numbers) + 1 if i < first else 0
        for i, name in enumerate(names)
    ]


def _numbered(name: str) -> tuple[str, int] | None:
    """The module list that holds a parameter's outermost numbered module, and its number."""
    segments = name.split(".")
    for i, segment in enumerate(segments[:-1]):
        if segment.isdecimal():
            return ".".join(segments[:i]), int(segment)
    return None


def _number_of(name: str) -> int:
    numbered = _numbered(name)
    assert numbered is not None
    return numbered[1]
