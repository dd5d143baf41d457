"""Numbers as people read them."""

from __future__ import annotations


def count(number: float) -> str:
    """Of parameters: 124M."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def size(number: float) -> str:
    """Of bytes: 3.2 GB."""
    return f"{number / 1e9:.3g} GB" if number >= 1e9 else f"{number / 1e6:.3g} MB"


def duration(seconds: float) -> str:
    """To two digits, in the largest unit of which there are two."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else "under 1 s"


def thresholds(found: dict[str, float]) -> str:
    """Each gate by its key."""
    return ", ".join(f"{key} {value:g}" for key, value in found.items()) or "none"
