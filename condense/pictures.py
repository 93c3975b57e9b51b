"""Pictures of a set and of its losses as PNG bytes. Equal input gives equal bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .errors import BadValue
from .export import to_uint8
from .observers import read_log
from .task import Picture

if TYPE_CHECKING:
    from .artifact import Artifact

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

CELL = 56  # about the side of an image in the grid, in pixels
COLUMNS = 25  # images in one line of the grid; a class with more takes several
ROWS = 100  # classes in the grid
INK, PAPER, FAINT = (28, 30, 34), (255, 255, 255), (110, 114, 122)


def drawn(artifact: Artifact) -> Sequence[Picture]:
    """What the form of the examples draws of the set: see `Form.pictures`."""
    sampler, task = artifact.sampler(), artifact.task
    return task.form.pictures(sampler.x, task.hard(sampler.y), task.classes)


def for_artifact(artifact: Artifact, drawings: Sequence[Picture] | None = None) -> dict[str, bytes]:
    """The files that an artifact shows: `pictures/loss.png`, and what its form draws, or `pictures/images.png`.

    drawings: what `drawn` has drawn already.
    """
    shown = drawn(artifact) if drawings is None else drawings
    found = {f"pictures/{picture.name}.png": picture.png for picture in shown}
    images = None if found else by_class(artifact)
    if images is not None:
        found["pictures/images.png"] = grid(images, artifact.task.classes)
    losses = [(line.step, line.total) for line in read_log(artifact.path) if math.isfinite(line.total)]
    if losses:
        found["pictures/loss.png"] = loss_curve(losses)
    return found


def by_class(artifact: Artifact) -> list[Pixels] | None:
    """Of each class its images as they look: (n, H, W) or (n, H, W, 3) uint8. None where examples are no images."""
    sampler = artifact.sampler()
    try:
        pixels = to_uint8(artifact, sampler)
    except (BadValue, AttributeError, TypeError):
        return None
    return [pixels[sampler.ids(c).cpu().numpy()] for c in range(artifact.task.groups)]


def png(pixels: Pixels) -> bytes:
    """(H, W) or (H, W, 3) uint8 as a PNG file."""
    return _bytes(Image.fromarray(pixels))


def enlargement(side: int, cell: int = CELL) -> int:
    """How often a pixel is repeated so that a small image can be seen: whole numbers only, so that it stays sharp."""
    return max(1, round(cell / side))


def grid(images: Sequence[Pixels], classes: Sequence[str]) -> bytes:
    """One row for each class, its name before it; at most `ROWS` classes, and a line says so where there are more."""
    shown = [(name, part) for name, part in zip(classes, images, strict=True) if len(part)][:ROWS]
    height, width = shown[0][1].shape[1:3]
    scale = enlargement(max(height, width))
    high, wide, gap = height * scale, width * scale, 4
    font = _font(14)
    label = min(220, math.ceil(max(font.getlength(_one_line(name)) for name, _ in shown))) + 16
    columns = min(COLUMNS, max(len(part) for _, part in shown))
    lines = [-(-len(part) // COLUMNS) for _, part in shown]
    left_out = sum(1 for part in images if len(part)) - len(shown)
    size = (label + columns * (wide + gap) + 8, sum(lines) * (high + gap) + 12 + 24 * bool(left_out))
    sheet = Image.new("RGB", size, PAPER)
    draw, y = ImageDraw.Draw(sheet), 8
    for (name, part), tall in zip(shown, lines, strict=True):
        text = _fitting(_one_line(name), font, label - 16)
        draw.text((label - 10, y + high // 2), text, fill=INK, font=font, anchor="rm")
        for i, image in enumerate(part):
            at = (label + i % COLUMNS * (wide + gap), y + i // COLUMNS * (high + gap))
            sheet.paste(Image.fromarray(image).convert("RGB").resize((wide, high), Image.Resampling.NEAREST), at)
        y += tall * (high + gap)
    if left_out:
        draw.text((10, y + 6), f"and {left_out} classes more", fill=FAINT, font=font)
    return _bytes(sheet)


def loss_curve(losses: Sequence[tuple[int, float]]) -> bytes:
    """(step, loss) pairs as a curve; the loss axis is logarithmic where the losses span more than a factor of 20."""
    from matplotlib.figure import Figure

    steps, values = [step for step, _ in losses], [value for _, value in losses]
    figure = Figure(figsize=(6.4, 3.6), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, values, linewidth=0.6, alpha=0.35, color="#2b6cb0")
    axes.plot(steps, smoothed(values), linewidth=1.6, color="#2b6cb0")
    if min(values) > 0 and max(values) / min(values) > 20:
        axes.set_yscale("log")
    axes.set_xlabel("outer step")
    axes.set_ylabel("loss")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)
    raw = io.BytesIO()
    figure.savefig(raw, format="png", metadata={"Software": None})
    return raw.getvalue()


def smoothed(values: Sequence[float]) -> list[float]:
    """A running mean over about a twentieth of the curve, narrower at both ends; as long as `values`."""
    half = len(values) // 40
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    at = np.arange(len(values))
    reach = np.minimum(half, np.minimum(at, len(values) - 1 - at))
    return [float(v) for v in (sums[at + reach + 1] - sums[at - reach]) / (2 * reach + 1)]


def _font(size: int) -> ImageFont.FreeTypeFont:
    """A font that is the same on every machine and knows more than Latin: the one that comes with matplotlib."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _bytes(image: Image.Image) -> bytes:
    raw = io.BytesIO()
    image.save(raw, format="PNG", optimize=False)
    return raw.getvalue()
