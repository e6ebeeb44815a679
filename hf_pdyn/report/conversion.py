"""vl-convert: Vega-Lite's scripts for the page, and charts as images, with no browser and no network."""

from __future__ import annotations

import copy
import struct
import textwrap
import zlib
from collections.abc import Iterator, Sequence
from types import ModuleType

from hf_pdyn.report import vega
from hf_pdyn.report.charts import Chart, sections
from hf_pdyn.report.run import Run

_WIDTH = 560
_SCALE = 2.0
_CHARACTERS_OF_A_LINE = 88


def vl_convert() -> ModuleType:
    """The library; ImportError with the cure where it is missing."""
    try:
        import vl_convert
    except ImportError as error:
        raise ImportError("a report needs vl-convert-python: pip install 'hf-pdyn[report]'.") from error
    module: ModuleType = vl_convert
    return module


def images(runs: Sequence[Run]) -> Iterator[tuple[str, bytes]]:
    """Every chart of a report on these runs as the name of a file and its PNG, light, 1120 pixels wide."""
    parts, _ = sections(runs)
    for section in parts:
        for chart in section.charts:
            yield f"{chart.key}.png", png(chart, runs)


def png(chart: Chart, runs: Sequence[Run]) -> bytes:
    """A chart as an image: with the title and the legend of runs that the page writes beside it."""
    spec = copy.deepcopy(chart.spec)
    spec["width"] = _WIDTH
    owner = f"{chart.run}, " if chart.run is not None and len(runs) > 1 else ""
    words = textwrap.wrap(f"{owner}{chart.note}", _CHARACTERS_OF_A_LINE)
    spec["title"] = {"text": chart.title, "subtitle": words} if words else chart.title
    color = spec["encoding"].get("color", {})
    if color.get("field") == "run" and len(runs) > 1:
        color["legend"] = {"title": None, "columns": 3, "symbolType": "stroke"}
    spec["padding"] = 12
    image: bytes = vl_convert().vegalite_to_png(
        spec, vl_version=vega.VERSION, scale=_SCALE, config=vega.config("light"), allowed_base_urls=[]
    )
    return recompressed(image)


def recompressed(image: bytes) -> bytes:
    """The same PNG, of a third of the size: vl-convert compresses for speed."""
    pixels = zlib.decompressobj()
    chunks, data, place = [], bytearray(), 8
    while place < len(image):
        (length,) = struct.unpack_from(">I", image, place)
        kind, content = image[place + 4 : place + 8], image[place + 8 : place + 8 + length]
        if kind == b"IDAT":
            data += pixels.decompress(content)
        else:
            chunks.append((kind, content))
        place += 12 + length
    chunks.insert(-1, (b"IDAT", zlib.compress(bytes(data), level=9)))  # IEND is last
    packed = [struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks]
    return image[:8] + b"".join(packed)
