"""A directive for the plugin's options, as a table: `{pdyn-options}`."""

from __future__ import annotations

import dataclasses

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from hf_pdyn import PdynArguments


class Options(SphinxDirective):
    """Every field of `PdynArguments`: the option, its default, what it does."""

    def run(self) -> list[nodes.Node]:
        rows = [("option", "default", "does")]
        for field in dataclasses.fields(PdynArguments):
            default = "" if field.default is None else str(field.default)
            rows.append((f"--{field.name}", default, str(field.metadata.get("help", ""))))
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
        lines.insert(1, "|---|---|---|")
        lines[2:] = [line.replace("| --", "| `--", 1).replace(" |", "` |", 1) for line in lines[2:]]
        return self.parse_text_to_nodes("\n".join(lines))


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("pdyn-options", Options)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
