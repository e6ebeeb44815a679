"""Options from a YAML file (``--config``), overridden by the command line."""

import dataclasses
import json
import sys
from argparse import ArgumentError, ArgumentParser
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

import yaml
from transformers import HfArgumentParser

from hf_pdyn.common.errors import nearest
from hf_pdyn.frontend.arguments import LEADERS

from .entry_point import RecipeError

_NULLS = ("", "~", "null")


class RecipeParser(HfArgumentParser):
    """`HfArgumentParser` with ``--config FILE`` and errors that fit on one line.

    Precedence, lowest first: the dataclasses' defaults, ``defaults``, the file, the command line.
    """

    def __init__(self, dataclass_types: Iterable[type], defaults: Mapping[str, Any], **parser_options: Any) -> None:
        # With abbreviations on, a misspelt option may silently stand for another one.
        super().__init__(dataclass_types, allow_abbrev=False, **parser_options)
        self.add_argument("--config", metavar="FILE", help="YAML file of options")
        self.set_defaults(**defaults)

    def parse(self, command_line: Sequence[str] | None = None) -> tuple[Any, ...]:
        """Return one instance of each dataclass, in the order given to the constructor."""
        words = list(sys.argv[1:] if command_line is None else command_line)
        file_words = self._words_of_file(_config_path(words), without=self._companions_of_what_is_off(words))
        try:
            *instances, _, unknown = self.parse_args_into_dataclasses(
                [*file_words, *words], look_for_args_file=False, return_remaining_strings=True
            )
        except (ValueError, TypeError) as error:
            raise RecipeError(str(error)) from error
        if unknown:
            raise RecipeError(f"unknown option {unknown[0]!r}; {self._nearest(unknown[0])}")
        return tuple(instances)

    def error(self, message: str) -> NoReturn:
        raise RecipeError(message)

    def _companions_of_what_is_off(self, words: Sequence[str]) -> set[str]:
        """Return the options that mean nothing after the command line switched off the one that they belong to.

        They are refused where a user writes both, but ``--p_control none`` on a file with ``p_interval`` is meant.
        """
        given = self.parse_known_args(words)[0]
        typed = {word.partition("=")[0].lstrip("-") for word in words if word.startswith("--")}
        off = [leader for name, leader in LEADERS.items() if name in typed and getattr(given, name) == leader.off]
        return {companion for leader in off for companion in leader.companions}

    def _words_of_file(self, path: Path | None, without: Collection[str]) -> list[str]:
        """Turn the file's scalars into command-line words, so that one parser checks them all."""
        if path is None:
            return []
        words = []
        for key, value in _read_mapping(path).items():
            if key not in self._keys():
                raise RecipeError(f"unknown key {key!r} in {path}; {self._nearest(key)}")
            if key in without:
                continue
            if isinstance(value, Mapping):
                words.append(f"--{key}={json.dumps(value)}")
            elif isinstance(value, list):
                # `report_to` takes a list in Python but one value on the command line.
                self.set_defaults(**{key: value})
            elif value.lower() in _NULLS:
                if not self._may_be_none(key):
                    raise RecipeError(f"{key} in {path} takes a value, got {value or 'nothing'}; leave the line out")
                self.set_defaults(**{key: None})
            else:
                words.append(f"--{key}={value}")
        return words

    def _may_be_none(self, key: str) -> bool:
        (owner,) = [one for one in self.dataclass_types if key in get_type_hints(one)]
        return type(None) in get_args(get_type_hints(owner)[key]) or self.get_default(key) is None

    def _keys(self) -> list[str]:
        return [
            field.name
            for dataclass_type in self.dataclass_types
            for field in dataclasses.fields(dataclass_type)
            if field.init
        ]

    def _nearest(self, unknown: str) -> str:
        name = unknown.lstrip("-").split("=")[0].replace("-", "_")
        near = nearest(name, self._keys(), n=1)
        return f"did you mean {near[0]!r}?" if near else "--help lists the options"


def _config_path(words: Sequence[str]) -> Path | None:
    """Return the file that ``--config`` names, reading no other option."""
    parser = ArgumentParser(allow_abbrev=False, add_help=False, exit_on_error=False)
    parser.add_argument("--config", type=Path)
    try:
        return parser.parse_known_args(words)[0].config
    except ArgumentError as error:
        raise RecipeError(str(error)) from error


def _read_mapping(path: Path) -> dict[str, Any]:
    """Read the file with every scalar as it is written.

    YAML 1.1 takes ``no`` for False and ``1e-3`` for text; argparse knows each option's type.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except OSError as error:
        raise RecipeError(f"--config must name a readable YAML file, got {str(path)!r} ({error.strerror})") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"--config must be valid YAML, got {str(path)!r}: {error}") from error
    except RecursionError as error:
        raise RecipeError(f"--config must be nested less deeply, got {str(path)!r}; options are one level") from error
    if not content:
        return {}
    if not isinstance(content, dict):
        raise RecipeError(f"--config must hold 'option: value' lines, got a {type(content).__name__} in {path}")
    return content
