"""Empty axes side by side, with margins in inches.

A layout engine would draw every label three times to find them; a run draws a dozen figures, and waits for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure


def panels(
    count: int,
    width: float,
    height: float,
    *,
    columns: int | None = None,
    left: float = 0.8,
    right: float = 0.2,
    bottom: float = 0.6,
    top: float = 0.4,
    dpi: float = 100,
) -> tuple[Figure, list[Axes]]:
    """A figure of its own, without pyplot (safe in any thread, no display), and its `count` axes, row by row.

    `width` and `height` of a panel, and the margins around each panel's axes, are inches.
    """
    columns = columns or max(1, count)
    rows = max(1, -(-count // columns))
    across, down = columns * width, rows * height
    figure = Figure(figsize=(across, down), dpi=dpi)
    size = (width - left - right) / across, (height - bottom - top) / down
    axes = []
    for i in range(count):
        row, column = divmod(i, columns)
        corner = (column * width + left) / across, ((rows - 1 - row) * height + bottom) / down
        axes.append(figure.add_axes((*corner, *size)))
        axes[-1].spines[["top", "right"]].set_visible(False)
    return figure, axes


def save(figures: Mapping[str, Figure], folder: Path) -> dict[str, Path]:
    """Draw each to NAME.png in the folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {name: folder / f"{name}.png" for name in figures}
    for name, picture in pictures.items():
        figures[name].savefig(picture)
    return pictures
