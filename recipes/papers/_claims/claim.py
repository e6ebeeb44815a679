"""How every claim is checked: run what is missing, draw, judge."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .options import Option, Options, parse
from .processes import is_main_process
from .rows import Configuration, Row, Rows
from .sweep import Work, run_all
from .verdict import Verdict


@dataclass(frozen=True)
class Claim:
    """One claim of a paper.

    module: `__name__` of the claim's own, which says the paper and the name. doc: that module's text, for --help.
    configurations: full ones, of all runs. run: does one. judge: by the rule that its verdict names. draw: writes
    `figure.png`, in the paper's layout. rows: of the folder that holds the rows, where several claims share them.
    options: those of its own.
    """

    module: str
    doc: str
    configurations: Callable[[Options], Sequence[Configuration]]
    run: Work
    judge: Callable[[Sequence[Row], Options], Verdict]
    draw: Callable[[Sequence[Row], Options], None]
    rows: str | None = None
    options: tuple[Option, ...] = ()

    @property
    def name(self) -> str:
        """The name of the folder of its outputs, too."""
        return self.module.rpartition(".")[2]

    @property
    def paper(self) -> str:
        """The name of the paper's package."""
        return self.module.split(".")[-2]

    def check(self, given: Options) -> None:
        """Do all of it; `verdict.json` is written last."""
        directory = given.output_dir / (self.rows or self.name)
        rows = run_all(self.configurations(given), self.run, Rows(directory / "rows.jsonl"), given, self.name)
        if is_main_process():
            self.draw(rows, given)
            self.judge(rows, given).write(given.directory)

    def main(self, words: Sequence[str]) -> None:
        """Check it with the options of a command line."""
        self.check(parse(self.paper, self.name, self.doc, self.options, words))
