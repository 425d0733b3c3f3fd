"""The charts of a report page, as inline SVG.

They are drawn by hand because a page must be one file without scripts, and follow the reader's light or dark
theme: colours are CSS classes, never values. Every text that comes from data is escaped. It refuses to
    compute statistics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup

from actors.agents.wording import say_number

__all__ = ["bar_chart", "heat_map", "line_chart", "row_bars", "spark_bars"]

_WIDTH, _HEIGHT = 520, 220
_SMALL_WIDTH, _SMALL_HEIGHT = 350, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 14, 12, 30
_LABEL_WIDTH = 128


def line_chart(
    labels: Sequence[str], values: Sequence[float | None], fitted: tuple[float, float] | None, title: str
) -> Markup:
    """Draw a series over time.

    Args:
        labels: One per period, in order.
        values: One per period; None leaves a gap.
        fitted: First and last value of a fitted line, or None for no line.
        title: For screen readers.

    Returns:
        An `<svg>` element; empty where there is nothing to draw.
    """
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return Markup()
    ticks = _ticks(min(known), max(known))
    low, high = ticks[0], ticks[-1]
    inner = _SMALL_WIDTH - _LEFT - _RIGHT
    step = inner / max(1, len(values) - 1)

    def y_of(value: float) -> float:
        return _TOP + (_SMALL_HEIGHT - _TOP - _BOTTOM) * (1 - (value - low) / (high - low))

    runs: list[list[tuple[float, float]]] = [[]]
    dots = Markup()
    radius = 3.2 if len(values) <= 30 else 2.2
    for index, value in enumerate(values):
        if value is None:
            runs.append([])
            continue
        x, y = _LEFT + index * step, y_of(value)
        runs[-1].append((x, y))
        label = labels[index] if index < len(labels) else ""
        dots += Markup('<circle class="dot" cx="{}" cy="{}" r="{}"><title>{}: {}</title></circle>').format(
            _n(x), _n(y), radius, label, say_number(value)
        )
    body = _y_axis(ticks, y_of, _SMALL_WIDTH) + _x_labels(labels, step)
    for run in runs:
        if len(run) > 1:
            points = " ".join(f"{_n(x)},{_n(y)}" for x, y in run)
            body += Markup('<polyline class="line" points="{}"/>').format(points)
    if fitted is not None:
        first, last = (min(high, max(low, value)) for value in fitted)
        body += Markup('<line class="fit" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(
            _LEFT, _n(y_of(first)), _n(_LEFT + (len(values) - 1) * step), _n(y_of(last))
        )
    return _svg(_SMALL_WIDTH, _SMALL_HEIGHT, title, body + dots)


def bar_chart(edges: Sequence[float], counts: Sequence[int], title: str) -> Markup:
    """Draw a histogram.

    Args:
        edges: One more than `counts`, ascending.
        counts: Rows per bin.
        title: For screen readers.
    """
    if not counts or len(edges) != len(counts) + 1 or max(counts) <= 0:
        return Markup()
    ticks = _ticks(0.0, float(max(counts)))
    high = ticks[-1]
    width = (_WIDTH - _LEFT - _RIGHT) / len(counts)

    def y_of(value: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - value / high)

    body = _y_axis(ticks, y_of, _WIDTH)
    for index, count in enumerate(counts):
        top = y_of(count)
        body += Markup(
            '<rect class="bar" x="{}" y="{}" width="{}" height="{}" rx="1.5">'
            "<title>{} to {}: {}</title></rect>"
        ).format(
            _n(_LEFT + index * width + 0.8),
            _n(top),
            _n(max(0.5, width - 1.6)),
            _n(max(0.0, y_of(0) - top)),
            say_number(edges[index]),
            say_number(edges[index + 1]),
            say_number(count),
        )
    for index in sorted({0, len(counts) // 2, len(counts)}):
        anchor = "start" if index == 0 else "end" if index == len(counts) else "middle"
        body += Markup('<text class="tick" x="{}" y="{}" text-anchor="{}">{}</text>').format(
            _n(_LEFT + index * width), _HEIGHT - 10, anchor, say_number(edges[index])
        )
    return _svg(_WIDTH, _HEIGHT, title, body)


def spark_bars(counts: Sequence[int]) -> Markup:
    """Draw a histogram small enough for a table cell, without axes."""
    if not counts or max(counts) <= 0:
        return Markup()
    width, height = 120, 26
    step = width / len(counts)
    body = Markup()
    for index, count in enumerate(counts):
        tall = height * count / max(counts)
        body += Markup('<rect class="bar" x="{}" y="{}" width="{}" height="{}"/>').format(
            _n(index * step + 0.4), _n(height - tall), _n(max(0.6, step - 0.8)), _n(tall)
        )
    return Markup('<svg class="spark" viewBox="0 0 {} {}" aria-hidden="true">{}</svg>').format(
        width, height, body
    )


def row_bars(rows: Sequence[tuple[str, float, str]], title: str) -> Markup:
    """Draw one horizontal bar per row.

    Args:
        rows: `(label, value, what to write behind the bar)`; values of 0 or more.
        title: For screen readers.
    """
    if not rows:
        return Markup()
    pitch, behind = 26, 66
    most = max([value for _, value, _ in rows] + [1e-12])
    inner = _WIDTH - _LABEL_WIDTH - behind
    body = Markup()
    for index, (label, value, written) in enumerate(rows):
        y = index * pitch
        length = inner * max(0.0, value) / most
        shown = label if len(label) <= 19 else f"{label[:18]}…"
        body += Markup(
            '<text class="name" x="{}" y="{}" text-anchor="end">{}<title>{}</title></text>'
        ).format(_LABEL_WIDTH - 10, y + 17, shown, label)
        body += Markup('<rect class="track" x="{}" y="{}" width="{}" height="14" rx="3"/>').format(
            _LABEL_WIDTH, y + 6, inner
        )
        body += Markup('<rect class="bar" x="{}" y="{}" width="{}" height="14" rx="3"/>').format(
            _LABEL_WIDTH, y + 6, _n(max(1.0, length))
        )
        body += Markup('<text class="tick" x="{}" y="{}">{}</text>').format(
            _LABEL_WIDTH + inner + 8, y + 17, written
        )
    return _svg(_WIDTH, pitch * len(rows) + 4, title, body)


def heat_map(names: Sequence[str], matrix: Sequence[Sequence[float | None]], title: str) -> Markup:
    """Draw a matrix of correlations, -1 to 1; None is an empty cell."""
    if len(names) < 2:
        return Markup()
    cell = min(64.0, (_WIDTH - _LABEL_WIDTH) / len(names))
    tall = max(26.0, cell * 0.62)
    body = Markup()
    for row, name in enumerate(names):
        y = row * tall
        body += Markup('<text class="name" x="{}" y="{}" text-anchor="end">{}</text>').format(
            _LABEL_WIDTH - 10, _n(y + tall / 2 + 4), name if len(name) <= 19 else f"{name[:18]}…"
        )
        for column, other in enumerate(names):
            value = matrix[row][column]
            x = _LABEL_WIDTH + column * cell
            if value is None:
                continue
            body += Markup(
                '<rect class="{}" x="{}" y="{}" width="{}" height="{}" rx="3" fill-opacity="{}">'
                "<title>{} and {}: {}</title></rect>"
            ).format(
                "warm" if value < 0 else "cool",
                _n(x + 1),
                _n(y + 1),
                _n(cell - 2),
                _n(tall - 2),
                _n(0.06 + 0.74 * min(1.0, abs(value))),
                name,
                other,
                say_number(value),
            )
            if cell >= 34:
                body += Markup('<text class="cell" x="{}" y="{}" text-anchor="middle">{}</text>').format(
                    _n(x + cell / 2), _n(y + tall / 2 + 4), f"{value:.2f}"
                )
    bottom = tall * len(names)
    for column, name in enumerate(names):
        left, base = _n(_LABEL_WIDTH + (column + 0.5) * cell + 3), _n(bottom + 12)
        body += Markup(
            '<text class="name" x="{}" y="{}" text-anchor="end" transform="rotate(-38 {} {})">{}</text>'
        ).format(left, base, left, base, name if len(name) <= 17 else f"{name[:16]}…")
    return _svg(_WIDTH, bottom + 84, title, body)


def _svg(width: float, height: float, title: str, body: Markup) -> Markup:
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        _n(width), _n(height), title, body
    )


def _y_axis(ticks: Sequence[float], y_of: Callable[[float], float], width: float) -> Markup:
    body = Markup()
    for tick in ticks:
        y = y_of(tick)
        body += Markup('<line class="grid" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(
            _LEFT, _n(y), _n(width - _RIGHT), _n(y)
        )
        body += Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>').format(
            _LEFT - 8, _n(y + 4), say_number(tick)
        )
    return body


def _x_labels(labels: Sequence[str], step: float) -> Markup:
    if not labels:
        return Markup()
    count = min(4, len(labels))
    chosen = sorted({round(index * (len(labels) - 1) / max(1, count - 1)) for index in range(count)})
    body = Markup()
    for index in chosen:
        anchor = "start" if index == 0 else "end" if index == len(labels) - 1 else "middle"
        body += Markup('<text class="tick" x="{}" y="{}" text-anchor="{}">{}</text>').format(
            _n(_LEFT + index * step), _SMALL_HEIGHT - 10, anchor, labels[index]
        )
    return body


def _ticks(low: float, high: float) -> list[float]:
    """Round marks at even steps of 1, 2 or 5 times a power of ten, that enclose both ends."""
    if high <= low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
