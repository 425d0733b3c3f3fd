"""Statistics of an image: size, sharpness, exposure, contrast and dominant colours, and a small preview.

It measures how a picture was taken and refuses to say what it shows.
"""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

from actors.agents.rounding import rounded
from cluster.model.plan import Json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

__all__ = ["describe_image"]

_WORK_SIDE = 1024
_PREVIEW_SIDE = 360
_NUM_COLOURS = 5
_NUM_LUMA_BINS = 32
_SHARP_VARIANCE = 100.0
_SOFT_VARIANCE = 30.0
_CLIPPED_SHARE = 0.05


def describe_image(item: dict[str, Json], content: bytes) -> dict[str, Json]:
    """Describe an image.

    Args:
        item: An image of the ingest: `input_id`, `format`, `mode`.
        content: Its bytes; they were decoded once before, so they are known to be an image.

    Returns:
        `{input_id, width, height, megapixels, aspect_ratio, format, mode, has_alpha, size_bytes, sharpness,
        exposure, contrast, colourfulness, dominant_colours, luminance_histogram, preview}`. Sharpness is
        measured at a longest side of 1,024 pixels or less, so that images of any size compare; preview is a
        data URI.
    """
    import cv2
    import numpy as np
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(content)) as opened:
        # JPEGs can be decoded at a fraction of their size, which saves most of the memory of large ones.
        opened.draft("RGB", (2 * _WORK_SIDE, 2 * _WORK_SIDE))
        upright = ImageOps.exif_transpose(opened)
        has_alpha = "A" in upright.getbands() or "transparency" in opened.info
        flat = _on_white(upright) if has_alpha else upright.convert("RGB")
    width, height = int(item["width"]), int(item["height"])
    if (flat.width > flat.height) != (width > height):
        width, height = height, width
    pixels: NDArray[np.uint8] = np.asarray(flat, dtype=np.uint8)
    longest = max(pixels.shape[:2])
    if longest > _WORK_SIDE:
        scale = _WORK_SIDE / longest
        size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
        pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    luma = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
    return {
        "input_id": item["input_id"],
        **({"name": item["name"]} if item.get("name") else {}),
        "width": width,
        "height": height,
        "megapixels": rounded(round(width * height / 1e6, 3)),
        "aspect_ratio": rounded(round(width / height, 4)),
        "format": item["format"],
        "mode": item["mode"],
        "has_alpha": has_alpha,
        "num_frames": item.get("num_frames", 1),
        "size_bytes": len(content),
        "sharpness": _sharpness(luma),
        "exposure": _exposure(luma),
        "contrast": _contrast(luma),
        "colourfulness": _colourfulness(pixels),
        "dominant_colours": _dominant_colours(pixels),
        "luminance_histogram": [int(n) for n in np.histogram(luma, bins=_NUM_LUMA_BINS, range=(0, 256))[0]],
        "preview": _preview(flat),
    }


def _on_white(image: Image.Image) -> Image.Image:
    from PIL import Image

    layered = image.convert("RGBA")
    ground = Image.new("RGBA", layered.size, (255, 255, 255, 255))
    return Image.alpha_composite(ground, layered).convert("RGB")


def _sharpness(luma: NDArray[np.uint8]) -> dict[str, Json]:
    """Variance of the Laplacian. Source: Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy"
    (2000)."""
    import cv2

    variance = float(cv2.Laplacian(luma, cv2.CV_64F).var())
    verdict = (
        "sharp" if variance >= _SHARP_VARIANCE else "slightly soft" if variance >= _SOFT_VARIANCE else "soft"
    )
    return {"laplacian_variance": rounded(round(variance, 3)), "verdict": verdict}


def _exposure(luma: NDArray[np.uint8]) -> dict[str, Json]:
    mean = float(luma.mean())
    shadows, highlights = float((luma <= 5).mean()), float((luma >= 250).mean())
    if mean < 65:
        verdict = "underexposed"
    elif mean > 200:
        verdict = "overexposed"
    elif shadows > _CLIPPED_SHARE and highlights > _CLIPPED_SHARE:
        verdict = "clipped at both ends"
    elif shadows > _CLIPPED_SHARE:
        verdict = "blocked shadows"
    elif highlights > _CLIPPED_SHARE:
        verdict = "blown highlights"
    else:
        verdict = "balanced"
    return {
        "mean_luminance": rounded(round(mean, 3)),
        "shadow_fraction": rounded(round(shadows, 5)),
        "highlight_fraction": rounded(round(highlights, 5)),
        "verdict": verdict,
    }


def _contrast(luma: NDArray[np.uint8]) -> dict[str, Json]:
    import numpy as np

    spread = float(luma.std())
    low, high = (float(value) for value in np.percentile(luma, (5, 95)))
    verdict = "high" if spread >= 70 else "normal" if spread >= 35 else "low"
    return {
        "rms": rounded(round(spread, 3)),
        "range_p05_p95": rounded(round(high - low, 3)),
        "verdict": verdict,
    }


def _colourfulness(pixels: NDArray[np.uint8]) -> float | None:
    """Source: Hasler and Süsstrunk, "Measuring colourfulness in natural images", SPIE 5007 (2003)."""
    import numpy as np

    red, green, blue = (pixels[..., channel].astype(np.float64) for channel in range(3))
    red_green, yellow_blue = red - green, (red + green) / 2 - blue
    spread = float(np.hypot(red_green.std(), yellow_blue.std()))
    mean = float(np.hypot(red_green.mean(), yellow_blue.mean()))
    return rounded(round(spread + 0.3 * mean, 3))


def _dominant_colours(pixels: NDArray[np.uint8]) -> list[dict[str, Json]]:
    """Cluster a small copy in CIELAB, where distances are close to what eyes see; the largest cluster
    first."""
    import cv2
    import numpy as np

    side = max(pixels.shape[:2])
    scale = min(1.0, 128 / side)
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    small = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    lab = np.asarray(cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)).reshape(-1, 3)
    num_clusters = min(_NUM_COLOURS, len(np.unique(small.reshape(-1, 3), axis=0)))
    # The generator is this thread's own; a fixed seed gives the same colours for the same image.
    cv2.setRNGSeed(20_240_229)
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 40, 0.1)
    _, labels, centres = cv2.kmeans(
        lab, num_clusters, np.zeros((0, 1), np.int32), criteria, 3, cv2.KMEANS_PP_CENTERS
    )
    counts = np.bincount(np.asarray(labels).ravel(), minlength=num_clusters)
    rgb = np.asarray(cv2.cvtColor(np.asarray(centres, np.float32).reshape(1, -1, 3), cv2.COLOR_Lab2RGB))[0]
    colours = []
    for count, triple in zip(counts, rgb, strict=True):
        red, green, blue = (round(min(1.0, max(0.0, float(part))) * 255) for part in triple)
        if count:
            colours.append((int(count), f"#{red:02x}{green:02x}{blue:02x}"))
    colours.sort(key=lambda pair: (-pair[0], pair[1]))
    return [{"hex": code, "fraction": rounded(round(count / len(lab), 4))} for count, code in colours]


def _preview(image: Image.Image) -> str:
    small = image.copy()
    small.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=78)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
