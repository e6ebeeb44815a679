"""`PdynArguments` from names and values, as a YAML file or a function call has them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from hf_pdyn.common.errors import did_you_mean
from hf_pdyn.common.numbers import is_number
from hf_pdyn.frontend.arguments import PdynArguments


def arguments_of(options: Mapping[str, Any]) -> PdynArguments:
    """The options of the command line by name, without dashes; a number may stand where text is asked for.

    ValueError for unknown names, and for what `PdynArguments` refuses.
    """
    fields = {field.name: str(field.type) for field in dataclasses.fields(PdynArguments)}
    for name in options:
        if name not in fields:
            raise ValueError(
                f"Unknown option {name!r} of hf_pdyn; known are {', '.join(fields)}.{did_you_mean(str(name), fields)}"
            )
    as_text = {name for name, annotation in fields.items() if annotation in ("str", "str | None")}
    given: dict[str, Any] = {
        name: str(value) if name in as_text and is_number(value) else value for name, value in options.items()
    }
    return PdynArguments(**given)
