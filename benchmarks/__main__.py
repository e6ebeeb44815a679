"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch

from benchmarks import offload, record, scale, spectral, step, trainer
from benchmarks.opponents import OPPONENTS
from benchmarks.shapes import SHAPES


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="scripts/benchmark", description=__doc__)
    parser.add_argument("what", choices=tuple(_RUN))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--shapes", nargs="+", choices=SHAPES, help="of `step`; default: what the device is measured with"
    )
    parser.add_argument("--dtypes", nargs="+", choices=step.DTYPES, help="of `step`")
    parser.add_argument("--against", nargs="+", choices=[*OPPONENTS, "padam"], default=[*OPPONENTS, "padam"])
    parser.add_argument(
        "--seconds", type=float, default=12.0, help="for each comparison of `step`, `offload` and `spectral`"
    )
    parser.add_argument("--steps", type=int, default=32, help="of each training of `trainer`")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="on the CPU")
    parser.add_argument("--json", help="file to write instead of benchmarks/<what>-<hardware>-<date>.json; - for none")
    parser.add_argument("--add", action="store_true", help="`step`: add rows to the day's record, and no extremes")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes, to see that it works")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a CUDA device, and this torch sees none. Leave it out, or take cpu.")
    torch.set_num_threads(options.threads)
    found = _RUN[options.what](options, device)
    if options.json != "-":
        print(f"\nwritten to {record.write(options.what, device, found, options.json, add=options.add)}")


def _step(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    on_gpu = device.type == "cuda"
    shapes = ["tiny"] if options.tiny else options.shapes or ["gpt2", "lora24", "lora200", *(["1b"] if on_gpu else [])]
    dtypes = options.dtypes or (["fp32", "bf16"] if on_gpu or options.tiny else ["fp32"])
    print(f"{record.hardware(device)}\n\n{step.header(on_device=on_gpu)}")
    found = step.run(device, shapes, dtypes, options.against, 0.05 if options.tiny else options.seconds)
    if not options.add:
        found["extremes"] = step.extremes(device, shapes[0])
        print(f"\n{shapes[0]}, in fresh processes: {json.dumps(found['extremes'], indent=1)}")
    return found


def _trainer(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    print(f"{record.hardware(device)}\n\n{trainer.HEADER}")
    return trainer.run(device, "tiny" if options.tiny else "gpt2", 8 if options.tiny else options.steps)


def _spectral(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    print(f"{record.hardware(device)}\n\n{spectral.HEADER}")
    return spectral.run(device, "tiny" if options.tiny else "gpt2", 0.05 if options.tiny else options.seconds)


def _scale(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    print(f"{record.hardware(device)}\n\n{scale.HEADER}")
    return scale.run((40, 80), 2000) if options.tiny else scale.run()


def _offload(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    print(f"{record.hardware(device)}\n\n{offload.HEADER}")
    return offload.run("tiny" if options.tiny else "gpt2", 0.05 if options.tiny else options.seconds)


_RUN = {"step": _step, "trainer": _trainer, "spectral": _spectral, "scale": _scale, "offload": _offload}


if __name__ == "__main__":
    main()
