"""Makes the sample inputs beside it: a year and a half of shop orders, and a picture. Same seed, same files.

    .venv/bin/python examples/data/make_samples.py

The orders carry what real ones do, and what a report should find: growth, a weekly rhythm, prices that drive
    revenue,
regions that differ, a delivery that spoils ratings, cells left empty and a few orders that are plainly wrong.
The text, notes.txt, is written by hand and is not made here.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["main", "make_orders", "paint_harbour"]

SEED = 20_240_229
NUM_ORDERS = 1_500
FIRST_DAY = datetime(2024, 1, 1, tzinfo=UTC)
NUM_DAYS = 547

CATALOGUE = {"Espresso": 14.5, "Filter": 12.0, "Decaf": 13.0, "Equipment": 64.0, "Gift box": 38.0}
CATEGORY_SHARES = (0.38, 0.29, 0.11, 0.10, 0.12)
REGIONS = {"North": 1.12, "South": 0.94, "East": 0.88, "West": 1.04}
REGION_SHARES = (0.34, 0.22, 0.17, 0.27)
CHANNELS = ("web", "app", "store")


def make_orders() -> list[dict[str, object]]:
    """Make the orders, in the order of their time."""
    rng = np.random.default_rng(SEED)
    # More orders a day towards the end, and more at weekends.
    weights = np.array(
        [
            (1 + 2.4 * day / NUM_DAYS) * (1.35 if (FIRST_DAY + timedelta(days=day)).weekday() >= 5 else 1.0)
            for day in range(NUM_DAYS)
        ]
    )
    days = np.sort(rng.choice(NUM_DAYS, size=NUM_ORDERS, p=weights / weights.sum()))
    orders: list[dict[str, object]] = []
    for number, day in enumerate(days):
        share = day / NUM_DAYS
        category = str(rng.choice(list(CATALOGUE), p=CATEGORY_SHARES))
        region = str(rng.choice(list(REGIONS), p=REGION_SHARES))
        app_share = 0.2 + 0.3 * share
        channel = str(rng.choice(CHANNELS, p=(0.75 - app_share, app_share, 0.25)))
        unit_price = CATALOGUE[category] * (1 + 0.16 * share) * float(rng.normal(1.0, 0.05))
        discount = float(rng.choice([0.0, 5.0, 10.0, 15.0], p=[0.55, 0.2, 0.17, 0.08]))
        mean_units = (
            1.6 + 0.07 * discount + 0.8 * share + (1.1 if category in ("Espresso", "Filter") else 0.0)
        )
        units = 1 + int(rng.poisson(mean_units * REGIONS[region]))
        revenue = units * unit_price * (1 - discount / 100)
        delivery = (
            0.0 if channel == "store" else float(rng.gamma(5.0, 0.55) + (0.9 if region == "East" else 0.0))
        )
        rating = min(5.0, max(1.0, 4.8 - 0.28 * max(0.0, delivery - 1.5) + float(rng.normal(0, 0.35))))
        orders.append(
            {
                "order_id": f"T-{10_000 + number}",
                "date": (FIRST_DAY + timedelta(days=int(day))).date().isoformat(),
                "region": region,
                "category": category,
                "channel": channel,
                "units": units,
                "unit_price": round(unit_price, 2),
                "discount_percent": discount,
                "revenue": round(revenue, 2),
                "delivery_days": round(delivery, 1) if delivery else None,
                "customer_rating": round(rating, 1),
            }
        )
    _spoil(orders, rng)
    return orders


def _spoil(orders: list[dict[str, object]], rng: np.random.Generator) -> None:
    """Do to the orders what happens to real ones: unanswered questions, and typing errors in a handful."""
    for number in rng.choice(NUM_ORDERS, size=240, replace=False):
        orders[number]["customer_rating"] = None
    for number in rng.choice(NUM_ORDERS, size=21, replace=False):
        orders[number]["discount_percent"] = None
    for number in rng.choice(NUM_ORDERS, size=5, replace=False):
        units, revenue = orders[number]["units"], orders[number]["revenue"]
        if isinstance(units, int) and isinstance(revenue, float):
            orders[number]["units"], orders[number]["revenue"] = units * 40, round(revenue * 40, 2)
    for number in rng.choice(NUM_ORDERS, size=3, replace=False):
        orders[number]["delivery_days"] = 61.0


def paint_harbour(width: int = 960, height: int = 640) -> NDArray[np.uint8]:
    """Paint a harbour at dusk.

    Returns:
        (height, width, 3) uint8, BGR.
    """
    rng = np.random.default_rng(SEED)
    horizon = int(height * 0.58)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    top, middle, low = (np.array(c, np.float32) for c in ((110, 62, 34), (150, 118, 190), (96, 172, 250)))
    t = np.clip(y / horizon, 0, 1)[..., None]
    sky = np.where(t < 0.6, top + (middle - top) * (t / 0.6), middle + (low - middle) * ((t - 0.6) / 0.4))
    sun_x, sun_y = width * 0.64, horizon - height * 0.17
    distance = np.hypot(x - sun_x, y - sun_y)
    glow = np.exp(-((distance / (height * 0.30)) ** 2))[..., None]
    picture = sky + glow * np.array((50, 105, 150), np.float32)
    clouds = _clouds(rng, width, height) * np.clip(1 - np.abs(y / horizon - 0.45) * 2.0, 0, 1)
    picture = (
        picture * (1 - 0.5 * clouds[..., None])
        + np.array((165, 165, 228), np.float32) * 0.5 * clouds[..., None]
    )
    picture[distance < height * 0.042] = (240, 252, 300)
    for depth, colour in ((0.9, (120, 92, 104)), (0.55, (84, 60, 62))):
        ridge = horizon - height * 0.10 * depth * (
            1 + 0.55 * np.sin(x[0] / width * 7.0 + depth * 9) + 0.22 * np.sin(x[0] / width * 23 + depth * 4)
        )
        mask = (y > ridge[None, :]) & (y <= horizon)
        picture[mask] = picture[mask] * 0.2 + np.array(colour, np.float32) * 0.8
    picture = _with_houses(picture, rng, horizon)
    picture = _with_water(picture, rng, horizon, sun_x)
    picture = _with_boats(picture, horizon)
    vignette = 1 - 0.32 * (((x / width - 0.5) ** 2 + (y / height - 0.5) ** 2) * 2)
    picture = picture * vignette[..., None] + rng.normal(0, 2.2, picture.shape)
    painted: NDArray[np.uint8] = np.clip(picture, 0, 255).astype(np.uint8)
    return painted


def _clouds(rng: np.random.Generator, width: int, height: int) -> NDArray[np.float32]:
    total = np.zeros((height, width), np.float32)
    for octave, weight in ((5, 0.5), (11, 0.28), (23, 0.15), (47, 0.07)):
        grid = rng.random((octave * 2, octave)).astype(np.float32)
        total += weight * np.asarray(
            cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC), np.float32
        )
    clouds: NDArray[np.float32] = np.clip((total - 0.48) * 4.5, 0, 1)
    return clouds


def _with_houses(picture: NDArray[np.float32], rng: np.random.Generator, horizon: int) -> NDArray[np.float32]:
    height, width = picture.shape[:2]
    left = int(width * 0.02)
    while left < width * 0.47:
        wide, tall = int(rng.integers(24, 46)), int(height * rng.uniform(0.07, 0.17))
        wall = np.array(rng.choice([(52, 58, 96), (70, 60, 74), (44, 66, 84), (78, 70, 64)]), np.float32)
        picture[horizon - tall : horizon, left : left + wide] = wall * rng.uniform(0.75, 1.05)
        roof = np.array(
            [
                [left - 3, horizon - tall],
                [left + wide + 3, horizon - tall],
                [left + wide // 2, horizon - tall - int(wide * 0.42)],
            ]
        )
        cv2.fillPoly(picture, [roof.astype(np.int32)], (34, 36, 66))
        for row in range(horizon - tall + 8, horizon - 10, 15):
            for column in range(left + 5, left + wide - 8, 12):
                lit = rng.random() < 0.5
                colour = (110, 205, 250) if lit else (46, 40, 44)
                cv2.rectangle(picture, (column, row), (column + 5, row + 7), colour, -1)
        left += wide + int(rng.integers(0, 5))
    return picture


def _with_water(
    picture: NDArray[np.float32], rng: np.random.Generator, horizon: int, sun_x: float
) -> NDArray[np.float32]:
    height, width = picture.shape[:2]
    columns = np.arange(width, dtype=np.float32)
    for row in range(horizon, height):
        depth = (row - horizon) / (height - horizon)
        source = max(0, horizon - 1 - int((row - horizon) * 1.25))
        ripple = (2 + 16 * depth) * np.sin(columns / (16 + 50 * depth) + row * 0.9 + rng.normal(0, 0.35))
        shifted = np.clip(columns + ripple, 0, width - 1).astype(np.int32)
        reflected = picture[source, shifted]
        picture[row] = reflected * (0.74 - 0.26 * depth) + np.array((62, 44, 26), np.float32) * (
            0.18 + 0.3 * depth
        )
        if rng.random() < 0.85:
            spread = 14 + 120 * depth
            centre = sun_x + float(rng.normal(0, 5 + 14 * depth))
            shine = np.exp(-(((columns - centre) / spread) ** 2)) * rng.uniform(0.15, 0.75)
            picture[row] += shine[:, None] * np.array((70, 130, 175), np.float32)
    return picture


def _with_boats(picture: NDArray[np.float32], horizon: int) -> NDArray[np.float32]:
    height, width = picture.shape[:2]
    for centre, base, size in ((0.71, 0.13, 1.0), (0.86, 0.06, 0.55), (0.56, 0.045, 0.42)):
        cx, cy = int(width * centre), horizon + int(height * base)
        s = size * height / 640
        hull = [(-64, 0), (70, 0), (54, 22), (-50, 22)]
        sails = ([(4, -8), (4, -138), (66, -14)], [(-4, -12), (-4, -118), (-52, -16)])
        dark, cloth = (38, 28, 30), (186, 206, 232)

        def place(
            points: list[tuple[int, int]], flip: float = 1.0, s: float = s, at: tuple[int, int] = (cx, cy)
        ) -> NDArray[np.int32]:
            return np.array([(at[0] + px * s, at[1] + py * s * flip) for px, py in points], np.int32)

        shadow = picture.copy()
        cv2.fillPoly(shadow, [place([(-64, -24), (70, -24), (40, -96), (-30, -88)], -1.0)], (48, 40, 44))
        picture = picture * 0.55 + shadow * 0.45
        cv2.line(picture, (cx, cy), (cx, cy - int(146 * s)), dark, max(1, int(3 * s)), cv2.LINE_AA)
        for sail in sails:
            cv2.fillPoly(picture, [place(sail)], cloth, cv2.LINE_AA)
        cv2.fillPoly(picture, [place(hull)], dark, cv2.LINE_AA)
        band = place([(-60, 5), (66, 5)])
        cv2.line(
            picture,
            tuple(map(int, band[0])),
            tuple(map(int, band[1])),
            (70, 78, 190),
            max(1, int(3 * s)),
            cv2.LINE_AA,
        )
    return picture


def main() -> None:
    """Write sales.json and photo.jpg beside this file."""
    folder = Path(__file__).resolve().parent
    lines = ",\n".join(json.dumps(order) for order in make_orders())
    (folder / "sales.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    encoded = cv2.imencode(".jpg", paint_harbour(), [cv2.IMWRITE_JPEG_QUALITY, 88])[1]
    (folder / "photo.jpg").write_bytes(encoded.tobytes())


if __name__ == "__main__":
    main()
