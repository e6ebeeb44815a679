"""Acting on another library's module as soon as it is imported, without importing it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def when_imported(name: str, act: Callable[[], None]) -> None:
    """Call `act` at once if the module is imported, and after every import and reload of it from now on.

    `act` must be idempotent.
    """
    actions = _finder.actions.setdefault(name, [])
    if act not in actions:
        actions.append(act)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    if name in sys.modules:
        act()


class _Finder(MetaPathFinder):
    """Leaves finding to the finders behind it, and wraps the loader of a module that somebody waits for."""

    def __init__(self) -> None:
        self.actions: dict[str, list[Callable[[], None]]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.actions:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _ActingLoader(spec.loader, self.actions[fullname])
                return spec
        return None


class _ActingLoader(Loader):
    """Runs the module by its own loader, which the module has from then on, and then the actions."""

    def __init__(self, loader: Loader, actions: Sequence[Callable[[], None]]) -> None:
        self._loader = loader
        self._actions = actions

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__loader__ = module.__spec__.loader = self._loader  # for inspect, pickle and importlib.resources
        self._loader.exec_module(module)
        for act in self._actions:
            act()


_finder = _Finder()
