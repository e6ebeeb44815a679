"""Which part of the gradient and of the update goes where: by pathway and component, and to head or backbone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hf_pdyn.common.label_names import COMPONENTS, PATHWAYS
from hf_pdyn.report.recorded_run import RecordedRun
from hf_pdyn.report.summary import NOTHING

EXPLAINED = "Parts of the squared norm of the gradient before clipping, and of the update."

HEAD = "head"


@dataclass(frozen=True)
class Shares:
    """A line of the table. name: `weight`, `weight/attention`, `backbone` and `head`, or a user's own group.

    `backbone`, `head` and groups add up both pathways.

    gradient, update: by run, None where a run has none. parameters: likewise, the part of the trained parameters.
    """

    name: str
    gradient: tuple[float | None, ...]
    update: tuple[float | None, ...]
    parameters: tuple[float | None, ...]

    @property
    def component(self) -> str | None:
        """The component, None for a line that adds up several."""
        return self.name.partition("/")[2] or None


def shares(runs: Sequence[RecordedRun]) -> list[Shares]:
    """The lines of the last complete records: every pathway and its components; then the head, and named groups."""
    logged = {name for run in runs for name in run.metrics}
    labels = [
        label
        for label in (f"{pathway}/{component}" for pathway in PATHWAYS for component in COMPONENTS)
        if {_metric(label, "grad"), _metric(label, "update")} & logged
    ]
    return [*_lines(runs, labels), *_lines_of_groups(runs)]


def percent(share: float | None) -> str:
    """A share as text; what rounds to nothing is told from nothing."""
    if share is None:
        return NOTHING
    return "<0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


def _lines(runs: Sequence[RecordedRun], labels: Sequence[str]) -> Iterator[Shares]:
    for pathway in PATHWAYS:
        own = [label for label in labels if label.startswith(f"{pathway}/")]
        if own:
            yield _line(pathway, [_sums(run, own) for run in runs], [_size(run, own) for run in runs])
            for label in own:
                yield _line(label, [_sums(run, [label]) for run in runs], [_size(run, [label]) for run in runs])
    head = [label for label in labels if label.endswith(f"/{HEAD}")]
    backbone = [label for label in labels if label not in head]
    if head and backbone:
        with_head = [_sums(run, head) for run in runs]
        rest = [_sums(run, backbone) if sums != _NONE else _NONE for run, sums in zip(runs, with_head, strict=True)]
        yield _line("backbone", rest, [_size(run, backbone) for run in runs])
        yield _line(HEAD, with_head, [_size(run, head) for run in runs])


def _lines_of_groups(runs: Sequence[RecordedRun]) -> Iterator[Shares]:
    for name in dict.fromkeys(name for run in runs for name in run.named_groups):
        metric = f"pdyn/by_group/{name}"
        sums = [(run.last(f"{metric}/grad_share"), run.last(f"{metric}/update_share")) for run in runs]
        yield _line(f"group {name}", sums, [None] * len(runs))


Sums = tuple[float | None, float | None]
"""Shares of the gradient and of the update."""
_NONE: Sums = (None, None)


def _sums(run: RecordedRun, labels: Sequence[str]) -> Sums:
    found = [[run.last(_metric(label, of)) for label in labels] for of in ("grad", "update")]
    gradient, update = ([share for share in own if share is not None] for own in found)
    return (sum(gradient) if gradient else None, sum(update) if update else None)


def _size(run: RecordedRun, labels: Sequence[str]) -> float | None:
    """Which part of the trained parameters has these labels; None where run.json does not say."""
    model = run.starts[-1].get("model") if run.starts else None
    counts = model.get("trainable_parameters_by_label") if isinstance(model, Mapping) else None
    if not isinstance(counts, Mapping) or not all(isinstance(count, int) for count in counts.values()):
        return None
    total = sum(counts.values())
    return sum(counts.get(label, 0) for label in labels) / total if total > 0 else None


def _line(name: str, sums: Sequence[Sums], sizes: Sequence[float | None]) -> Shares:
    gradient, update = zip(*sums, strict=True)
    return Shares(name, gradient, update, tuple(sizes))


def _metric(label: str, of: str) -> str:
    return f"pdyn/by_label/{label}/{of}_share"
