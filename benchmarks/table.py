"""Puts the newest records into the documentation: `python -m benchmarks.table`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import format_losses, offload, scale, spectral, step, trainer
from benchmarks.record import FOLDER
from hf_pdyn.sweep.rows import Rows

ROOT = FOLDER.parent
SPEED = ROOT / "docs" / "speed.md"
DOCUMENTS = {
    "losses": SPEED,
    "steps": SPEED,
    "offload": SPEED,
    "spectra": SPEED,
    "scale": ROOT / "docs" / "scale.md",
    "speed": ROOT / "README.md",
}


def newest() -> dict[str, list[dict[str, Any]]]:
    """The newest record of every hardware, of every benchmark."""
    kinds = ("step", "offload", "trainer", "spectral", "scale")
    found: dict[str, dict[str, dict[str, Any]]] = {what: {} for what in kinds}
    for path in sorted(FOLDER.glob("*.json"), key=lambda path: (path.name[-15:], path.name)):  # the date at its end
        record = json.loads(path.read_text())
        if record.get("what") in found:
            of_kind = found[record["what"]]
            of_kind.pop(record["hardware"], None)  # the newest comes last
            of_kind[record["hardware"]] = record
    return {what: list(records.values()) for what, records in found.items()}


def everything(records: dict[str, list[dict[str, Any]]]) -> str:
    """All rows of steps and trainings, for docs/speed.md."""
    lines: list[str] = []
    for record in records["step"]:
        lines += [
            f"{_where(record)}; memory gives {record['gigabytes_per_second']:.0f} GB/s:",
            "",
            step.header(on_device=any("device_ratio" in row for row in record["rows"])),
            *map(step.line, record["rows"]),
            "",
            *_extremes(record),
            "",
        ]
    for record in records["trainer"]:
        lines += [
            f"A Trainer's step, {record['batch'][0]} x {record['batch'][1]} tokens, a record every "
            f"{record['logging_steps']} steps, against AdamW without callbacks. Defaults: telemetry and the allocation "
            "curve. Everything: telemetry of every layer, control and shutoff, spectra and the losses of "
            f"{record['probed']:.0%} of the samples at the end of an epoch of {record['epoch']} steps. "
            f"{_where(record)}:",
            "",
            trainer.HEADER,
            *map(trainer.line, record["rows"]),
            "",
        ]
    return "\n".join(lines).strip()


def spectra(records: dict[str, list[dict[str, Any]]]) -> str:
    """What spectra cost, for docs/speed.md."""
    lines: list[str] = []
    for record in records["spectral"]:
        batch = f"{record['batch'][0]} x {record['batch'][1]}"
        lines += [
            f"{_where(record)}; the training step is of {batch} tokens:",
            "",
            spectral.HEADER,
            *map(spectral.line, record["rows"]),
            "",
            f"So all that is measured takes at most {record['share']:.0%} of this training where an interval has "
            f"{record['steps_for_share']} steps or more.",
            "",
        ]
    return "\n".join(lines).strip()


def offloaded(records: dict[str, list[dict[str, Any]]]) -> str:
    """Steps of ZeRO's partitions on the CPU, for docs/speed.md."""
    lines: list[str] = []
    for record in records["offload"]:
        where = f"{_where(record)}, deepspeed {record['versions']['deepspeed']}"
        lines += [f"{where}:", "", offload.HEADER, *map(offload.line, record["rows"]), ""]
    return "\n".join(lines).strip()


def of_many_tensors(records: dict[str, list[dict[str, Any]]]) -> str:
    """What telemetry costs with very many tensors, for docs/scale.md."""
    lines: list[str] = []
    for record in records["scale"]:
        lines += [f"{_where(record)}:", "", *scale.lines(record), ""]
    return "\n".join(lines).strip()


def short(records: dict[str, list[dict[str, Any]]]) -> str:
    """What the README shows, in five rows: the newest records, against torch's fused AdamW in float32."""
    lines = ["| a step of | on | time of AdamW's |", "|---|---|---|"]
    cpus = [record for record in records["step"] if _is_of_a_cpu(record)]
    gpus = [record for record in records["step"] if not _is_of_a_cpu(record) and _has(record, _SHOWN_OF_A_GPU)]
    for record, shown in (
        *((cpu, _SHOWN_OF_A_CPU) for cpu in cpus[-1:]),
        *((gpu, _SHOWN_OF_A_GPU) for gpu in gpus[-1:]),
    ):
        for (shapes, step_name), name in shown.items():
            for row in record["rows"]:
                if (row["shapes"], row["ours"], row["against"], row["dtype"]) == (shapes, step_name, "adamw", "fp32"):
                    lines.append(f"| {name} | {record['hardware']} | {row['ratio']:.2f} x |")
    for record in records["trainer"][-1:]:
        for row in record["rows"]:
            if (row["training"], row["callbacks"]) in _SHOWN_TRAININGS:
                name = f"a Trainer, {row['training'].removeprefix('gpt2 ')}, default gauges"
                lines.append(f"| {name} | {record['hardware']} | {row['ratio_by_parts']:.2f} x |")
    return "\n".join(lines)


_SHOWN_OF_A_CPU = {
    ("gpt2", "p=0.37"): "GPT-2, 124 M parameters",
    ("gpt2", "16bit, p=0.5"): "GPT-2, 124 M parameters, p = 1/2, `state_dtype=16bit`",
    ("lora24", "p=0.37"): "24 tensors of LoRA",
}
_SHOWN_OF_A_GPU = {("1b", "16bit, p=0.37"): "a GPT-2 of 1 B parameters, `state_dtype=16bit`"}
_SHOWN_TRAININGS = {("gpt2 full fine-tuning", "defaults")}


def _has(record: dict[str, Any], rows: Mapping[tuple[str, str], str]) -> bool:
    return rows.keys() <= {(row["shapes"], row["ours"]) for row in record["rows"]}


def _is_of_a_cpu(record: dict[str, Any]) -> bool:
    return "threads" in record["hardware"]


def _where(record: dict[str, Any]) -> str:
    commit = f", commit {record['commit']}" if record.get("commit") else ""
    return f"{record['hardware']}, torch {record['versions']['torch']}, {record['date']}{commit}"


def _extremes(record: dict[str, Any]) -> list[str]:
    found = record["extremes"]
    memory = found["padam, compiled"]["peak_bytes"] / found["adamw"]["peak_bytes"]
    first = {name: values["first_step_seconds"] for name, values in found.items()}
    return [
        f"Peak memory of the process {memory:.3f} x AdamW's. Seconds until the first step is done: AdamW "
        f"{first['adamw']:.2f}, padam {first['padam, nothing compiled']:.2f} where nothing is compiled yet and "
        f"{first['padam, compiled']:.2f} ever after."
    ]


def insert(document: str, name: str, table: str) -> str:
    """`document` with `table` between its lines for `name`; ValueError where it lacks them."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found_begin, rest = document.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise ValueError(f"The document must have the lines {begin} and {end}.")
    return f"{before}{begin}\n{table}\n{end}{after}"


def documents(records: dict[str, list[dict[str, Any]]]) -> dict[Path, str]:
    """Every document with tables, as it should be."""
    tables = {
        "losses": format_losses.table(format_losses.compared(Rows(format_losses.ROWS))),
        "steps": everything(records),
        "offload": offloaded(records),
        "spectra": spectra(records),
        "scale": of_many_tensors(records),
        "speed": short(records),
    }
    texts = {path: path.read_text() for path in DOCUMENTS.values()}
    for name, path in DOCUMENTS.items():
        texts[path] = insert(texts[path], name, tables[name])
    return texts


if __name__ == "__main__":
    for path, text in documents(newest()).items():
        path.write_text(text)
