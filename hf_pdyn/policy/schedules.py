"""Moments of training and schedules over them: pure functions of the optimizer step.

Both have a form for the command line without characters a shell would touch:

========================  ==================================================================
`200`                     after 200 optimizer steps
`0.5` or `50%`            at this fraction of training
`epoch:2`                 after two epochs, `epoch:0.5` after half of the first
`0.45`                    (as a schedule) constant
`linear:0.45..0.35`       from the first step to the end of training
`cosine:0.1..0@0.2..0.8`  half a cosine between two moments, constant outside them
`step:0.5,0.4@0.5,0.3@1000`  a value, and the moments at which it becomes another
========================  ==================================================================
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass
from typing import Literal

from hf_pdyn.common.errors import did_you_mean, shortened
from hf_pdyn.common.numbers import format_number, parse_number

Unit = Literal["step", "fraction", "epoch"]
Kind = Literal["constant", "linear", "cosine", "step"]

_KINDS: tuple[Kind, ...] = ("linear", "cosine", "step")

_WHOLE = re.compile(r"\+?[0-9]+")
_LATEST = 2.0**53
"""The largest step or epoch: a float holds every whole number up to here."""


@dataclass(frozen=True)
class Moment:
    """A point of training, in optimizer steps, epochs, or as a fraction of all steps."""

    value: float
    unit: Unit

    @classmethod
    def of(cls, value: Moment | str | float) -> Moment:
        """A moment as it may be written: itself, its text, an int of steps or a float fraction; else ValueError."""
        return value if isinstance(value, Moment) else cls.parse(str(value))

    @classmethod
    def parse(cls, text: str) -> Moment:
        """`200` (steps), `0.5` or `50%` (fraction), `epoch:2`; anything else is a ValueError."""
        body = text.strip()
        try:
            if body.startswith("epoch:"):
                moment = cls(parse_number(body.removeprefix("epoch:")), "epoch")
            elif body.endswith("%"):
                moment = cls(parse_number(body[:-1]) / 100, "fraction")
            elif _WHOLE.fullmatch(body):
                moment = cls(parse_number(body), "step")
            else:
                moment = cls(parse_number(body), "fraction")
        except ValueError:
            raise ValueError(
                f"{shortened(text)} is no moment of training. Write a number of optimizer steps (200), a fraction of "
                "training (0.5 or 50%), or epoch:N."
            ) from None
        if not 0 <= moment.value <= _LATEST:
            raise ValueError(f"A moment of training must lie between 0 and {_LATEST:g}, got {shortened(text)}.")
        if moment.unit == "fraction" and moment.value > 1:
            raise ValueError(
                f"A fraction of training must lie in [0, 1], got {shortened(text)}. "
                "Write a whole number for optimizer steps, or epoch:N."
            )
        return moment

    def resolve(self, *, total_steps: int, steps_per_epoch: int | None) -> int:
        """The number of optimizer steps done when this moment comes.

        steps_per_epoch: None where the dataset has no length; ValueError for an epoch then.
        """
        if self.unit == "step":
            return int(self.value)
        if self.unit == "epoch":
            if steps_per_epoch is None:
                raise ValueError(
                    f"The dataset has no length, so {self} is at no known step. Write steps or a fraction."
                )
            return round(self.value * steps_per_epoch)
        return round(self.value * total_steps)

    def __str__(self) -> str:
        """The text that `parse` reads back."""
        if self.unit == "epoch":
            return f"epoch:{format_number(self.value)}"
        return repr(self.value) if self.unit == "fraction" else str(int(self.value))


@dataclass(frozen=True)
class Schedule:
    """A number as a function of the optimizer step.

    kind: `constant`, `linear` and `cosine` (from values[0] to values[1] between two moments), `step`
    (values[i] from moments[i-1] on).

    Example:
        >>> schedule = Schedule.parse("linear:0.45..0.35")
        >>> f"{schedule.value(50, total_steps=100, steps_per_epoch=None):.3f}"
        '0.400'
    """

    kind: Kind
    values: tuple[float, ...]
    moments: tuple[Moment, ...] = ()

    @classmethod
    def of(cls, value: Schedule | str | float) -> Schedule:
        """A schedule as it may be written: itself, its text, or a constant; else ValueError."""
        return value if isinstance(value, Schedule) else cls.parse(str(value))

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """Read the forms of this module's table; anything else is a ValueError that names the cure."""
        kind, separator, body = text.strip().partition(":")
        if not separator:
            return cls("constant", (_number(text, text),))
        if kind not in _KINDS:
            raise ValueError(
                f"Unknown schedule {shortened(kind)} in {shortened(text)}; known are {', '.join(_KINDS)}."
                f"{did_you_mean(kind, _KINDS)}"
            )
        if kind == "step":
            return _parse_step(text, body)
        ends, at, window = body.partition("@")
        values = tuple(_number(part, text) for part in _pair(ends, text))
        moments = tuple(Moment.parse(part) for part in _pair(window, text)) if at else ()
        return cls(kind, values, moments)  # checked against _KINDS

    def value(self, step: int, *, total_steps: int, steps_per_epoch: int | None) -> float:
        """The value that the update with zero-based index `step` uses."""
        points = [m.resolve(total_steps=total_steps, steps_per_epoch=steps_per_epoch) for m in self.moments]
        if self.kind == "constant":
            return self.values[0]
        if self.kind == "step":
            return self.values[sum(step >= point for point in points)]
        begin, end = points or (0, total_steps)
        progress = min(max((step - begin) / max(end - begin, 1), 0.0), 1.0)
        if self.kind == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        first, last = self.values
        return first * (1 - progress) + last * progress  # exact at both ends; a difference may overflow

    def __str__(self) -> str:
        """The text that `parse` reads back."""
        values, moments = [format_number(value) for value in self.values], [str(moment) for moment in self.moments]
        if self.kind == "constant":
            return values[0]
        if self.kind == "step":
            later = [f"{value}@{moment}" for value, moment in zip(values[1:], moments, strict=True)]
            return f"step:{','.join([values[0], *later])}"
        window = f"@{'..'.join(moments)}" if moments else ""
        return f"{self.kind}:{'..'.join(values)}{window}"

    def check(self, *, total_steps: int, steps_per_epoch: int | None) -> None:
        """Raise ValueError where the moments are out of order or lie beyond the end of training."""
        points = [m.resolve(total_steps=total_steps, steps_per_epoch=steps_per_epoch) for m in self.moments]
        if any(later <= earlier for earlier, later in itertools.pairwise(points)):
            raise ValueError(
                f"The moments of a schedule must increase, got steps {points} from {', '.join(map(str, self.moments))}."
            )
        if points and points[-1] > total_steps:
            raise ValueError(
                f"A schedule must end within training: moment {self.moments[-1]} is step {points[-1]}, "
                f"training has {total_steps}. Write an earlier moment or a fraction."
            )


def _parse_step(text: str, body: str) -> Schedule:
    first, *rest = body.split(",")
    values, moments = [_number(first, text)], []
    for part in rest:
        value, at, moment = part.partition("@")
        if not at:
            raise ValueError(
                f"Each value after the first needs its moment, as in step:0.5,0.4@0.5; got {shortened(text)}."
            )
        values.append(_number(value, text))
        moments.append(Moment.parse(moment))
    return Schedule("step", tuple(values), tuple(moments))


def _pair(text: str, whole: str) -> tuple[str, str]:
    first, dots, last = text.partition("..")
    if not dots or ".." in last:
        raise ValueError(
            f"Two numbers joined by '..' are needed, as in linear:0.45..0.35@0.1..0.9; got {shortened(whole)}."
        )
    return first, last


def _number(text: str, whole: str) -> float:
    try:
        return parse_number(text)
    except ValueError as error:
        raise ValueError(f"A schedule needs finite numbers, got {shortened(whole)}: {error}") from None
