"""How every claim is checked: run what is missing, draw, judge."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .options import Options, parse
from .processes import is_main_process
from .rows import Configuration, Row, Rows
from .sweep import Work, run_all
from .verdict import Verdict


@dataclass(frozen=True)
class Claim:
    """One claim of a paper.

    name: of the folder of its outputs. doc: the module's text, for --help. configurations: full ones, of all runs.
    run: does one. judge: by the rule that its verdict names. draw: writes `figure.png`, in the paper's layout.
    rows: of the folder that holds the rows, where several claims share them. full_needs: the options of full runs.
    """

    name: str
    doc: str
    configurations: Callable[[Options], Sequence[Configuration]]
    run: Work
    judge: Callable[[Sequence[Row], Options], Verdict]
    draw: Callable[[Sequence[Row], Options], None]
    rows: str | None = None
    full_needs: tuple[str, ...] = ()

    def check(self, options: Options) -> None:
        """Do all of it; `verdict.json` is written last."""
        directory = options.output_dir / (self.rows or self.name)
        rows = run_all(self.configurations(options), self.run, Rows(directory / "rows.jsonl"), options, self.name)
        if is_main_process():
            self.draw(rows, options)
            self.judge(rows, options).write(options.directory)

    def main(self, words: Sequence[str]) -> None:
        """Check it with the options of a command line."""
        self.check(parse(self.name, self.doc, self.full_needs, words))
