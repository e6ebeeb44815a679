"""A callback is named in all the places where a user looks for it."""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest

import hf_pdyn
from hf_pdyn import callbacks
from hf_pdyn.callbacks.base import PdynCallback
from hf_pdyn.frontend import arguments

USAGE = Path(__file__).parents[2] / "docs" / "usage.md"


def leaves(cls: type) -> Iterator[type]:
    """The classes below `cls` that nothing else of the package is made of."""
    below = [child for child in cls.__subclasses__() if child.__module__.startswith("hf_pdyn.")]
    for child in below:
        yield from leaves(child)
    if not below:
        yield cls


for module in iter_modules(callbacks.__path__, "hf_pdyn.callbacks."):
    import_module(module.name)
NAMES = sorted({leaf.__name__ for leaf in leaves(PdynCallback)})


@pytest.mark.parametrize("name", NAMES)
def test_a_callback_has_all_its_places(name: str) -> None:
    places = {
        "__all__ of hf_pdyn.callbacks": name in callbacks.__all__,
        "__all__ of hf_pdyn": name in hf_pdyn.__all__,
        "hf_pdyn.frontend.arguments, which builds it from an option": hasattr(arguments, name),
        "the table of docs/usage.md": f"`{name}`" in USAGE.read_text(),
    }
    assert [place for place, named in places.items() if not named] == []


def test_all_are_found() -> None:
    assert set(NAMES) == set(callbacks.__all__)
