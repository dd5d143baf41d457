"""Tables on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from textwrap import wrap


def row(cells: Sequence[str], widths: Sequence[int]) -> str:
    """The cells side by side, each wrapped to its width."""
    wrapped = zip_longest(*map(wrap, cells, widths), fillvalue="")
    lines = ("  ".join(f"{text:<{width}}" for text, width in zip(line, widths, strict=True)) for line in wrapped)
    return "\n".join(line.rstrip() for line in lines)
