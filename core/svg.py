"""Small charts as inline SVG, for a page that must stand alone. Pure text in, text out; colors are Okabe and Ito's.

Every mark has a title (shown on hover) with its exact figure; text stays at 12 px or more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999")
"""Distinct for people with any common kind of color vision. The last is for "other"."""
WIDTH = 720
MAX_SERIES = 6
MAX_TICKS = 14


def _svg(height: float, body: Sequence[str], label: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(body)}</svg>'
    )


def _text(x: float, y: float, text: str, anchor: str = "start", extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {extra}>{escape(text)}</text>'


def _nice_step(largest: float, num_steps: int = 4) -> float:
    """A step of 1, 2 or 5 times a power of ten, about `num_steps` of which reach `largest`."""
    if largest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(largest / num_steps))
    return next(float(factor * power) for factor in (1, 2, 5, 10) if factor * power * num_steps >= largest * 0.999)


def money(value: float) -> str:
    """`1,234`, `12.3` or `0.0042`: enough digits, no more."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:,.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def stacked_bars(labels: Sequence[str], series: Mapping[str, Sequence[float]], unit: str) -> str:
    """A column per label, stacked by series (names in the legend). More than six series: the rest become "other".

    `series` maps a name to one value per label. Negative values (months of corrections) count as zero in the picture.
    """
    names = sorted(series, key=lambda name: -sum(series[name]))
    shown = {name: list(series[name]) for name in names[:MAX_SERIES]}
    if len(names) > MAX_SERIES:
        rest = names[MAX_SERIES:]
        shown[f"{len(rest)} other"] = [sum(series[name][i] for name in rest) for i in range(len(labels))]
    heights = [[max(0.0, value) for value in values] for values in shown.values()]
    step = _nice_step(max((sum(column) for column in zip(*heights, strict=True)), default=0.0))
    num_steps = max(1, math.ceil(max((sum(c) for c in zip(*heights, strict=True)), default=0.0) / step - 1e-9))
    decimals = max(0, -math.floor(math.log10(step)))
    left, plot, floor = 64.0, 190.0, 220.0
    body = [_text(left, 16, unit, extra='class="muted"')]
    for index in range(num_steps + 1):
        y = floor - plot * index / num_steps
        body.append(f'<line x1="{left}" x2="{WIDTH - 8}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        body.append(_text(left - 8, y + 4, f"{index * step:,.{decimals}f}", "end"))
    slot = (WIDTH - 8 - left) / max(1, len(labels))
    every = max(1, math.ceil(len(labels) / MAX_TICKS))
    for column, label in enumerate(labels):
        y, width = floor, min(48.0, slot * 0.7)
        x = left + slot * (column + 0.5) - width / 2
        for number, (name, values) in enumerate(zip(shown, heights, strict=True)):
            height = values[column] / (step * num_steps) * plot
            y -= height
            if height > 0:
                body.append(
                    f'<rect x="{x:.1f}" y="{y:.2f}" width="{width:.1f}" height="{height:.2f}" '
                    f'fill="{COLORS[min(number, len(COLORS) - 1)]}"><title>{escape(f"{name}, {label}: ")}'
                    f"{money(values[column])} {escape(unit)}</title></rect>"
                )
        if column % every == 0:
            body.append(_text(left + slot * (column + 0.5), floor + 18, label, "middle"))
    legend, height = _legend(list(shown), left, floor + 40)
    return _svg(height, [*body, *legend], f"{unit} by period: {', '.join(shown)}")


def _legend(names: Sequence[str], left: float, y: float) -> tuple[list[str], float]:
    body, x = [], left
    for number, name in enumerate(names):
        width = 30 + 7.2 * len(name)
        if x + width > WIDTH and x > left:
            x, y = left, y + 20
        body.append(f'<rect x="{x:.1f}" y="{y - 10:.1f}" width="12" height="12" fill="{COLORS[min(number, 6)]}"/>')
        body.append(_text(x + 18, y, name))
        x += width
    return body, y + 12


def bars(items: Sequence[tuple[str, float]], unit: str) -> str:
    """A horizontal bar per item, its label above and its value at the end. Negative values go left of the axis."""
    largest = max((abs(value) for _, value in items), default=0.0) or 1.0
    has_negative = any(value < 0 for _, value in items)
    axis = WIDTH * 0.4 if has_negative else 8.0
    room = (WIDTH - axis - 130) if not has_negative else min(axis - 100, WIDTH - axis - 130)
    body, y = [], 4.0
    for label, value in items:
        length = abs(value) / largest * room
        x = axis - length if value < 0 else axis
        body.append(_text(8, y + 12, label))
        body.append(
            f'<rect x="{x:.1f}" y="{y + 18:.1f}" width="{max(length, 1):.1f}" height="14" '
            f'fill="{COLORS[5] if value < 0 else COLORS[0]}"><title>{escape(label)}: {money(value)} {escape(unit)}'
            "</title></rect>"
        )
        at, anchor = (x - 6, "end") if value < 0 else (axis + length + 6, "start")
        body.append(_text(at, y + 30, f"{money(value)} {unit}", anchor))
        y += 42
    return _svg(y + 4, body, f"{unit}: {', '.join(label for label, _ in items)}")


def gauge(label: str, parts: Sequence[tuple[str, float]], limit: float, unit: str) -> str:
    """One bar against its limit: the parts one after another (spent, reserved), marks at 80% and 100%."""
    total = sum(value for _, value in parts)
    scale = (WIDTH - 24) / (max(limit, total) * 1.05 or 1.0)
    body, x = [_text(8, 14, label)], 8.0
    body.append(f'<rect x="8" y="22" width="{limit * scale:.1f}" height="16" class="track"/>')
    for number, (name, value) in enumerate(parts):
        width = max(0.0, value * scale)
        body.append(
            f'<rect x="{x:.1f}" y="22" width="{width:.1f}" height="16" fill="{COLORS[number]}">'
            f"<title>{escape(name)}: {money(value)} {escape(unit)}</title></rect>"
        )
        x += width
    for share in (0.8, 1.0):
        at = 8 + limit * share * scale
        body.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="18" y2="42" class="limit"/>')
        body.append(_text(at, 55, f"{share:.0%}", "middle"))
    return _svg(60, body, label)


def scatter(points: Sequence[tuple[float, float, str]], x_label: str, y_label: str) -> str:
    """Points on logarithmic axes with the diagonal on which y equals x. Points need positive coordinates."""
    values = [value for x, y, _ in points for value in (x, y)]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 1)
    left, top, size = 64.0, 12.0, 300.0

    def at(value: float) -> float:
        return (math.log10(value) - low) / (high - low) * size

    body = [f'<line x1="{left}" y1="{top + size}" x2="{left + size}" y2="{top}" class="limit"/>']
    for power in range(low, high + 1):
        offset = at(10**power)
        body.append(f'<line x1="{left}" x2="{left + size}" y1="{top + size - offset:.1f}" '
                    f'y2="{top + size - offset:.1f}" class="grid"/>')  # fmt: skip
        body.append(_text(left - 8, top + size - offset + 4, f"{10.0**power:g}", "end"))
        body.append(_text(left + offset, top + size + 18, f"{10.0**power:g}", "middle"))
    for x, y, title in points:
        body.append(
            f'<circle cx="{left + at(x):.1f}" cy="{top + size - at(y):.1f}" r="4" fill="{COLORS[0]}" '
            f'fill-opacity="0.7"><title>{escape(title)}</title></circle>'
        )
    body.append(_text(left + size / 2, top + size + 36, x_label, "middle"))
    body.append(_text(left + size + 12, top + 14, f"{y_label} (dashed: estimate = actual)", extra='class="muted"'))
    return _svg(top + size + 44, body, f"{y_label} against {x_label}")
