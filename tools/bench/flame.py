"""Time as boxes within boxes: a flame graph, drawn as SVG by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from xml.sax.saxutils import escape

_WIDTH, _ROW, _LETTER = 1000.0, 22, 6.5
_HUES = (18, 28, 38, 48, 8)


@dataclasses.dataclass(frozen=True)
class Box:
    """Something that took `size` (any unit), and what it consists of, in order."""

    name: str
    size: float
    parts: tuple[Box, ...] = ()

    @property
    def depth(self) -> int:
        """Rows that it needs."""
        return 1 + max((part.depth for part in self.parts), default=0)


def draw(root: Box, unit: str = "µs") -> str:
    """An SVG: `root` above, its parts below, each as wide as its share; names where they fit, all in
    tooltips."""
    height = root.depth * _ROW
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:g} {height}" '
        f'font-family="sans-serif" font-size="11">'
    )
    scale = _WIDTH / root.size if root.size else 0.0
    return "\n".join([head, *_boxes(root, 0.0, 0, scale, root.size, unit), "</svg>", ""])


def _boxes(box: Box, x: float, row: int, scale: float, whole: float, unit: str) -> Iterator[str]:
    width, y = box.size * scale, row * _ROW
    label = f"{box.name}: {box.size:,.1f} {unit} ({box.size / whole:.1%})" if whole else box.name
    colour = f"hsl({_HUES[len(box.name) % len(_HUES)]} 85% {62 + 6 * (row % 3)}%)"
    yield f"<g><title>{escape(label)}</title>"
    yield f'<rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{_ROW - 1}" fill="{colour}" stroke="#fff"/>'
    text = next((name for name in (label, box.name) if len(name) * _LETTER < width), "")
    if text:
        yield f'<text x="{x + 4:.2f}" y="{y + 15}">{escape(text)}</text>'
    yield "</g>"
    for part in box.parts:
        yield from _boxes(part, x, row + 1, scale, whole, unit)
        x += part.size * scale
