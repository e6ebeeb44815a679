"""How every claim is checked: run what is missing, draw, judge."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import history
from .options import Option, Options, parse
from .processes import is_main_process
from .rows import Configuration, Row, SharedRows, time_of
from .sweep import Work, WorkTogether, run_all
from .verdict import Verdict


@dataclass(frozen=True)
class Claim:
    """One claim of a paper.

    module: `__name__` of the claim's own, which says the paper and the name. doc: that module's text, for --help.
    rule: how a verdict follows from rows, with the bound below which an effect is none; fixed before the first run.
    configurations: full ones, of all runs, in order of worth. run: does one, or several at once. judge: by the rule.
    draw: writes `figure.png`, in the paper's layout. folder_of: names the folder that holds a run's row, where claims
    share runs. options: those of its own. seeds: repetitions, where none are asked for.
    """

    module: str
    doc: str
    rule: str
    configurations: Callable[[Options], Sequence[Configuration]]
    run: Work | WorkTogether
    judge: Callable[[Sequence[Row], Options], Verdict]
    draw: Callable[[Sequence[Row], Options], None]
    folder_of: Callable[[Configuration], str] | None = None
    options: tuple[Option, ...] = ()
    seeds: int = 5

    @property
    def name(self) -> str:
        """The name of the folder of its outputs, too."""
        return self.module.rpartition(".")[2]

    @property
    def paper(self) -> str:
        """The name of the paper's package."""
        return self.module.split(".")[-2]

    @property
    def rule_file(self) -> Path:
        """The file whose commits date the rule."""
        return Path(str(sys.modules[self.module].__file__)).parent / "rules" / f"{self.name}.txt"

    def check(self, given: Options) -> None:
        """Do all of it; `verdict.json` is written last."""
        configurations = self.configurations(given)
        rows = run_all(configurations, self.run, self.rows(given), given, self.name)
        missing = len(configurations) - len(rows)
        if missing:
            print(f"{self.name}: {missing} runs are missing, so there is no verdict; the same command does them")
        elif is_main_process() and not given.rows_alone:
            self.draw(rows, given)
            self.judged(rows, given).write(given.directory)

    def rows(self, given: Options) -> SharedRows:
        """Those that are there, of its own and other claims."""
        return SharedRows(given.output_dir, self.folder_of or (lambda _: self.name), self.configurations(given))

    def judged(self, rows: Sequence[Row], given: Options) -> Verdict:
        """The verdict on rows, with all that it follows from."""
        commit, standing = history.standing(self.rule, self.rule_file, map(time_of, rows))
        return dataclasses.replace(
            self.judge(rows, given),
            rule=" ".join(self.rule.split()),
            rule_commit=commit,
            standing=standing,
            size=self._size(given),
            seeds=given.seeds,
            options=dict(given.own),
        )

    def _size(self, given: Options) -> str:
        """As `Options.size`, but "larger" where a number of images, channels or epochs is not the quick run's."""
        other = any(isinstance(one.quick, int) and given[one.name] != one.quick for one in self.options)
        return "larger" if other and not given.full else given.size

    def main(self, words: Sequence[str]) -> None:
        """Check it with the options of a command line; with `--rule` alone, print the rule and keep it."""
        if list(words) == ["--rule"]:
            print(" ".join(self.rule.split()))
            history.keep(self.rule, self.rule_file)
        else:
            self.check(parse(self.paper, self.name, self.doc, self.options, words, self.seeds))
