"""Augmentations of images: the differentiable families of DSA, and the one that DC judges with.

Both are vectorised over the images, on the device where these are, and differentiable in them.

Notation: x is (N, C, H, W); `u` is (k, p), numbers drawn uniformly from [0, 1), where k is 1 (one parameter set, shared
by all images: siamese) or N (one for each image). Parameters follow from u, the settings and the size of the images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, final

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError
from torch import Tensor

from condense.axes import Augment, Warp
from condense.errors import BadValue
from condense.parts.augment import Beside
from condense.recipe import Recipe
from condense.rng import Rng
from condense.task import Batch, Task

# -- geometry that both are made of ---------------------------------------------------------------------------------


def whole(u: Tensor, m: int) -> Tensor:
    """Numbers of [0, 1) as whole numbers of 0..m-1, int64. (Rounding may carry u * m to m.)"""
    return (u * m).long().clamp_max(m - 1)


def pick(x: Tensor, rows: Tensor, cols: Tensor, fill: Tensor | float = 0.0) -> Tensor:
    """Images whose pixel (i, j) is x[rows[i], cols[j]], and `fill` where that lies outside of x.

    rows: (k, H) int64; cols: (k, W) int64; fill: a number, or a tensor that broadcasts to (N, C, H, W).
    """
    (h, w), size = x.shape[-2:], (rows.shape[1], cols.shape[1])
    inside = ((rows >= 0) & (rows < h))[:, None, :, None] & ((cols >= 0) & (cols < w))[:, None, None, :]
    rows, cols = rows.clamp(0, h - 1), cols.clamp(0, w - 1)
    places = (rows[:, :, None] * w + cols[:, None, :]).flatten(1)[:, None, :].expand(*x.shape[:2], -1)
    return torch.where(inside, x.flatten(2).gather(2, places).view(*x.shape[:2], *size), fill)


def resample(x: Tensor, matrices: Tensor) -> Tensor:
    """Images read bilinearly at linearly mapped places, zero outside of x; `align_corners` is False.

    matrices: (k, 2, 2), from the place (x, y) of a pixel of the result, each in [-1, 1], to the place to read. One grid
    is made for each matrix. It is float32 at least: bfloat16 has no room for a place.
    """
    grid = F.affine_grid(F.pad(matrices, (0, 1)), [len(matrices), 1, *x.shape[-2:]], align_corners=False)
    dtype = torch.promote_types(x.dtype, torch.float32)
    grid = grid.to(dtype).expand(len(x), -1, -1, -1)
    return F.grid_sample(x.to(dtype), grid, align_corners=False).to(x.dtype)


def rotations(degrees: Tensor) -> Tensor:
    """(k, 2, 2) for `resample`: positive angles turn the picture anticlockwise (rows run downwards). degrees: (k,)."""
    a = degrees * (math.pi / 180)
    return torch.stack([a.cos(), -a.sin(), a.sin(), a.cos()], dim=-1).view(-1, 2, 2)


def families_of(strategy: str, known: Iterable[str]) -> list[str]:
    """The families of a strategy string, in its order; refuses unknown and repeated ones."""
    families, names = strategy.split("_"), ", ".join(known)
    for i, family in enumerate(families):
        if family not in names.split(", "):
            message = "no family named {family} in the strategy; known: {known}"
        elif family in families[:i]:
            message = "the strategy names {family} twice; known: {known}"
        else:
            continue
        context = {"family": repr(family), "known": names, "remedy": "Join families by '_', as in color_crop_flip."}
        raise PydanticCustomError("component", message, context)
    return families


def check_images(augment: Augment, task: Task) -> None:
    """Refuse examples that are no images of channels, rows and columns."""
    if len(task.shape) != 3:
        problem = f"{augment.name} augments images of (channels, rows, columns)"
        raise BadValue("augment", task.shape, problem, "Use the augmentation `none`.")


# -- DSA ------------------------------------------------------------------------------------------------------------


def color(x: Tensor, u: Tensor, dsa: DSA) -> Tensor:
    """Brightness, then saturation (distance from the mean over channels), then contrast (from the image's mean)."""
    bright, saturated, contrasted = (part[:, None, None, None] for part in u.to(x.dtype).unbind(1))
    x = x + (bright - 0.5) * dsa.brightness
    x = torch.lerp(x.mean(1, keepdim=True), x, saturated * dsa.saturation)
    return torch.lerp(x.mean((1, 2, 3), keepdim=True), x, contrasted + dsa.contrast)


def crop(x: Tensor, u: Tensor, dsa: DSA) -> Tensor:
    """A shift by whole pixels, at most int(ratio * side + 0.5) either way; what comes in is 0."""
    rows, cols = (
        _range(x, side) + (whole(u[:, i : i + 1], 2 * pad + 1) - pad)
        for i, side in enumerate(x.shape[-2:])
        for pad in (int(side * dsa.ratio_crop_pad + 0.5),)
    )
    return pick(x, rows, cols)


def cutout(x: Tensor, u: Tensor, dsa: DSA) -> Tensor:
    """A box of zeros, int(ratio * side + 0.5) long, whose middle may lie anywhere; it may hang over the edge."""
    within = []
    for i, side in enumerate(x.shape[-2:]):
        size = int(side * dsa.ratio_cutout + 0.5)
        start = whole(u[:, i : i + 1], side + 1 - size % 2) - size // 2
        at = _range(x, side)
        within.append((at >= start) & (at < start + size))
    return x.masked_fill(within[0][:, None, :, None] & within[1][:, None, None, :], 0.0)


def flip(x: Tensor, u: Tensor, dsa: DSA) -> Tensor:
    """Left and right exchanged, with probability `prob_flip`."""
    return torch.where(u[:, :, None, None] < dsa.prob_flip, x.flip(3), x)


def scale(x: Tensor, u: Tensor, dsa: DSA) -> Tensor:
    """Width and height divided by factors of their own, of [1 / ratio, ratio]: above 1, the image shrinks."""
    low = 1 / dsa.ratio_scale
    return resample(x, torch.diag_embed(u * (dsa.ratio_scale - low) + low))


def rotate(x: Tensor, u: Tensor, dsa: DSA) -> Tensor:
    """A turn about the centre by up to `ratio_rotate` degrees either way."""
    return resample(x, rotations((u[:, 0] * 2 - 1) * dsa.ratio_rotate))


def _range(x: Tensor, n: int) -> Tensor:
    return torch.arange(n, device=x.device)


class Strategic(Augment):
    """Abstract: an augmentation of images by families, named in a strategy string; `known` has them by name."""

    shorthand: ClassVar[str | None] = "strategy"
    known: ClassVar[Mapping[str, Any]]
    strategy: str

    @field_validator("strategy")
    @classmethod
    def _known(cls, strategy: str) -> str:
        families_of(strategy, cls.known)
        return strategy

    @property
    def families(self) -> list[str]:
        return self.strategy.split("_")

    def check(self, recipe: Recipe, task: Task) -> None:
        check_images(self, task)


class Family(NamedTuple):
    """One of DSA's families: how many numbers it draws for a parameter set, and what it does with them."""

    draws: int
    apply: Callable[[Tensor, Tensor, DSA], Tensor]


FAMILIES = {
    "color": Family(3, color),
    "crop": Family(2, crop),
    "cutout": Family(2, cutout),
    "flip": Family(1, flip),
    "scale": Family(2, scale),
    "rotate": Family(1, rotate),
}


@dataclass(frozen=True, eq=False)
class DSAWarp(Warp):
    """Drawn families of DSA, in their order; numbers: (k, draws) of [0, 1) for each."""

    dsa: DSA
    numbers: Mapping[str, Tensor]

    def __call__(self, batch: Batch) -> Batch:
        x = batch.x
        for family, u in self.numbers.items():
            x = FAMILIES[family].apply(x, u.to(x.device, non_blocking=True), self.dsa)
        return batch.with_x(x)

    def state(self) -> dict[str, Tensor]:
        return dict(self.numbers)


@final
class DSA(Strategic):
    """Differentiable siamese augmentation (Zhao and Bilen, ICML 2021, arXiv:2102.08259), as in the released code.

    strategy: families of color, crop, cutout, flip, scale, rotate, joined by "_". Leave out flip where left and right
    matter (MNIST, SVHN). mode: S ("single") applies one family, the same for all images of a call; M ("multiple") all
    of them, in the order of the strategy. The other fields are the ranges, with the published defaults.

    `sample(rng)` draws one parameter set for all images: siamese, when the warp meets real and synthetic images alike.
    (The released code draws one for each image, then takes the first one's.) `sample(rng, n)` draws one for each.

    The code leaves `align_corners` unset, which is False in today's PyTorch, and so it is here; MTT and DD-Ranking pass
    True. On grey images, saturation changes nothing.
    """

    name: ClassVar[str] = "dsa"
    known: ClassVar[Mapping[str, Any]] = FAMILIES
    strategy: str = "color_crop_cutout_flip_scale_rotate"
    mode: Literal["S", "M"] = "S"
    ratio_scale: float = Field(default=1.2, ge=1)
    ratio_rotate: float = Field(default=15.0, ge=0, le=180)
    ratio_crop_pad: float = Field(default=0.125, ge=0, le=1)
    ratio_cutout: float = Field(default=0.5, ge=0, le=1)
    brightness: float = Field(default=1.0, ge=0)
    saturation: float = Field(default=2.0, ge=0)
    contrast: float = Field(default=0.5, ge=0)
    prob_flip: float = Field(default=0.5, ge=0, le=1)

    def sample(self, rng: Rng, n: int | None = None, progress: float = 0.0) -> Warp:
        names = self.families
        if self.mode == "S":
            names = [names[rng.fold("family").choice(len(names))]]
        k = 1 if n is None else n
        draws = {name: torch.rand(k, FAMILIES[name].draws, generator=rng.fold(name).generator()) for name in names}
        return DSAWarp(self, draws)

    def replay(self, state: Mapping[str, Tensor]) -> Warp:
        """Raises `BadValue` for a state with families that the strategy does not name."""
        unknown = sorted(set(state) - set(self.families))
        if unknown:
            remedy = "Replay it with the augmentation that drew it."
            raise BadValue("augment", unknown, f"is not in the strategy {self.strategy}", remedy)
        return DSAWarp(self, {name: state[name] for name in self.families if name in state})


# -- DC's own -------------------------------------------------------------------------------------------------------


def dc_crop(x: Tensor, u: Tensor, warp: DCWarp, mean: Tensor) -> Tensor:
    """A shift by -crop..crop-1 pixels (as released: never by crop); what comes in is the channel's mean."""
    by = whole(u, 2 * warp.dc.crop) - warp.dc.crop
    h, w = x.shape[-2:]
    return pick(x, _range(x, h) + by[:, :1], _range(x, w) + by[:, 1:], mean)


def dc_scale(x: Tensor, u: Tensor, warp: DCWarp, mean: Tensor) -> Tensor:
    """Height and width scaled on their own, to the nearest pixel; then cut, or padded with zeros, about the centre."""
    sides = x.shape[-2:]
    factors = (u * 2 - 1) * warp.dc.scale + 1
    sizes = [(factors[:, i : i + 1] * side).long().clamp_min(1) for i, side in enumerate(sides)]
    canvas = torch.maximum(*sizes).clamp_min(max(sides))
    places = []
    for side, size in zip(sides, sizes, strict=True):
        at = _range(x, side) + (canvas - side) // 2 - (canvas - size) // 2
        source = (at * (side / size.float())).floor().long().clamp_max(side - 1)
        places.append(torch.where((at >= 0) & (at < size), source, -1))
    return pick(x, places[0], places[1])


def dc_rotate(x: Tensor, u: Tensor, warp: DCWarp, mean: Tensor) -> Tensor:
    """A turn about the centre by -rotate..rotate-1 whole degrees; what comes in is the mean over channels."""
    degrees = whole(u[:, 0], 2 * warp.dc.rotate) - warp.dc.rotate
    fill = mean.mean()
    return resample(x - fill, rotations(degrees.float())) + fill


def dc_noise(x: Tensor, u: Tensor, warp: DCWarp, mean: Tensor) -> Tensor:
    """Normal noise of standard deviation `noise`; drawn on the host, from the warp's seed."""
    generator = torch.Generator().manual_seed(int(warp.seed))
    drawn = torch.randn(len(u), *x.shape[1:], generator=generator)
    return x + warp.dc.noise * drawn.to(x.device, x.dtype, non_blocking=True)


DC_FAMILIES = {"crop": dc_crop, "scale": dc_scale, "rotate": dc_rotate, "noise": dc_noise}


@dataclass(frozen=True, eq=False)
class DCWarp(Warp):
    """Drawn choices of DC's augmentation. choice: (k,) int64 into the families; u: (k, 2); seed: of the noise, 0-d.

    The fill is a mean over the images of the batch, so that a result depends on the others.
    """

    dc: DCAugment
    choice: Tensor
    u: Tensor
    seed: Tensor
    mixes = True

    def __call__(self, batch: Batch) -> Batch:
        x = batch.x
        mean = x.detach().mean((0, 2, 3), keepdim=True)
        chosen, places = [], []
        for i, family in enumerate(self.dc.families):
            at = (self.choice == i).nonzero().flatten()  # on the host: no device is waited for
            if len(at) == 0:
                continue
            some = x if len(self.choice) == 1 else x[at.to(x.device, non_blocking=True)]
            u = self.u[at].to(x.device, non_blocking=True)
            chosen.append(DC_FAMILIES[family](some, u, self, mean))
            places.append(at)
        if len(chosen) == 1:
            return batch.with_x(chosen[0])
        order = torch.cat(places).argsort().to(x.device, non_blocking=True)
        return batch.with_x(torch.cat(chosen)[order])

    def state(self) -> dict[str, Tensor]:
        return {"choice": self.choice, "u": self.u, "seed": self.seed}


@final
class DCAugment(Strategic):
    """The augmentation of DC's released code (arXiv:2006.05929), for training networks on a finished set.

    Each image goes through one family of the strategy, chosen for it. As released, "crop_scale_rotate" judges MNIST,
    and "crop_noise" networks with batch norm; other sets are judged without. Ours differs in this: the turn is bilinear
    and exactly about the centre (released: cubic splines, and half a pixel off where the turned canvas is odd), and a
    scaled width refers to the width of the image (released: to its height; the same for square images).
    """

    name: ClassVar[str] = "dc-augment"
    known: ClassVar[Mapping[str, Any]] = DC_FAMILIES
    strategy: str = "crop_scale_rotate"
    crop: int = Field(default=4, ge=1)
    scale: float = Field(default=0.2, ge=0, lt=1)
    rotate: int = Field(default=45, ge=1, le=180)
    noise: float = Field(default=0.001, ge=0)

    def sample(self, rng: Rng, n: int | None = None, progress: float = 0.0) -> Warp:
        k = 1 if n is None else n
        choice = torch.randint(len(self.families), (k,), generator=rng.fold("family").generator())
        u = torch.rand(k, 2, generator=rng.fold("numbers").generator())
        return DCWarp(self, choice, u, torch.tensor(rng.fold("noise").seed))

    def replay(self, state: Mapping[str, Tensor]) -> Warp:
        return DCWarp(self, state["choice"].cpu(), state["u"], state["seed"].cpu())


# -- FRePo's --------------------------------------------------------------------------------------------------------


def frepo_color(x: Tensor, u: Tensor, how: FRePoAugment) -> Tensor:
    """Brightness, then contrast (from the image's mean), then saturation (from the mean over channels)."""
    bright, contrasted, saturated = (
        (2 * part - 1)[:, None, None, None] * how.color for part in u.to(x.dtype).unbind(1)
    )
    x = x + bright
    x = torch.lerp(x.mean((1, 2, 3), keepdim=True), x, contrasted.exp())
    return torch.lerp(x.mean(1, keepdim=True), x, saturated.exp())


def frepo_crop(x: Tensor, u: Tensor, how: FRePoAugment) -> Tensor:
    """Enlarged by 1 / zoom to zoom, evenly in the logarithm, about a place that keeps the picture in sight."""
    zoom = torch.exp((2 * u[:, 0] - 1) * math.log(how.zoom))
    shift = (2 * u[:, 1:] - 1) * (1 - 1 / zoom).abs()[:, None]
    return moved(x, torch.diag_embed(1 / zoom[:, None].expand(-1, 2)), shift)


def frepo_translate(x: Tensor, u: Tensor, how: FRePoAugment) -> Tensor:
    """A shift by up to `translate` of each side, either way."""
    return moved(x, torch.eye(2, device=u.device).expand(len(u), 2, 2), 2 * (2 * u - 1) * how.translate)


def frepo_rotate(x: Tensor, u: Tensor, how: FRePoAugment) -> Tensor:
    """A turn about the centre by up to `rotate` degrees either way."""
    h, w = x.shape[-2:]
    to_square = torch.tensor([[1.0, h / w], [w / h, 1.0]], device=u.device)
    return moved(x, rotations((2 * u[:, 0] - 1) * how.rotate) * to_square, u.new_zeros(len(u), 2))


def frepo_cutout(x: Tensor, u: Tensor, how: FRePoAugment) -> Tensor:
    """A box of zeros within the image, a `cutout`-th of each side long."""
    within = []
    for i, side in enumerate(x.shape[-2:]):
        size, at = side // how.cutout, _range(x, side)
        start = whole(u[:, i : i + 1], side - size + 1)
        within.append((at >= start) & (at < start + size))
    return x.masked_fill(within[0][:, None, :, None] & within[1][:, None, None, :], 0.0)


def frepo_flip(x: Tensor, u: Tensor, how: FRePoAugment) -> Tensor:
    """Left and right exchanged, with probability 1/2."""
    return torch.where(u[:, :, None, None] < 0.5, x.flip(3), x)


def moved(x: Tensor, matrices: Tensor, shifts: Tensor) -> Tensor:
    """Images read bilinearly at M place + shift; beyond the edge lies the edge.

    matrices: (k, 2, 2), shifts: (k, 2), of places (x, y) in [-1, 1].
    """
    grid = F.affine_grid(torch.cat([matrices, shifts[:, :, None]], dim=2), [len(matrices), 1, *x.shape[-2:]], False)
    dtype = torch.promote_types(x.dtype, torch.float32)
    grid = grid.to(dtype).expand(len(x), -1, -1, -1)
    return F.grid_sample(x.to(dtype), grid, padding_mode="border", align_corners=False).to(x.dtype)


FREPO_FAMILIES: dict[str, tuple[int, Callable[[Tensor, Tensor, FRePoAugment], Tensor]]] = {
    "flip": (1, frepo_flip),
    "color": (3, frepo_color),
    "crop": (3, frepo_crop),
    "rotate": (1, frepo_rotate),
    "translate": (2, frepo_translate),
    "cutout": (2, frepo_cutout),
}


@dataclass(frozen=True, eq=False)
class FRePoWarp(Warp):
    """Families of FRePo's augmentation; u: (k, draws) of [0, 1) for each. `which`: (k,) the place among them of the one
    that each image goes through, where there are several.
    """

    how: FRePoAugment
    u: Mapping[str, Tensor]
    which: Tensor | None = None

    def __call__(self, batch: Batch) -> Batch:
        device, x = batch.x.device, batch.x
        for place, (family, u) in enumerate(self.u.items()):
            moved = FREPO_FAMILIES[family][1](batch.x, u.to(device, non_blocking=True), self.how)
            own = None if self.which is None else (self.which == place).to(device, non_blocking=True)
            x = moved if own is None else torch.where(own[:, None, None, None], moved, x)
        return batch.with_x(x)

    def state(self) -> dict[str, Tensor]:
        return {**self.u, **({} if self.which is None else {"which": self.which})}


@final
class FRePoAugment(Strategic):
    """The augmentation that FRePo and RCIG judge with (arXiv:2206.00719, 2302.06755), as in their released code.

    Each call applies one family of the strategy, with parameters of its own for each image; each: every image one of
    its own, as in RCIG's code. color: by how much
    brightness, and the logarithms of contrast and saturation, may differ. zoom: crop enlarges by 1 / zoom to zoom.
    translate: share of a side. rotate: degrees. cutout: 4 for a box of a quarter of each side. Flip and, in RCIG's
    code, color are left out on grey images. Pixels beyond the edge repeat the edge.
    """

    name: ClassVar[str] = "frepo-augment"
    known: ClassVar[Mapping[str, Any]] = FREPO_FAMILIES
    strategy: str = "flip_color_crop_rotate_translate_cutout"
    each: bool = False
    color: float = Field(default=0.25, ge=0)
    zoom: float = Field(default=1.25, ge=1)
    translate: float = Field(default=0.125, ge=0, le=1)
    rotate: float = Field(default=15.0, ge=0, le=180)
    cutout: int = Field(default=4, ge=1)

    def sample(self, rng: Rng, n: int | None = None, progress: float = 0.0) -> Warp:
        k, families, which = 1 if n is None else n, self.families, None
        if self.each:
            which = torch.randint(len(families), (k,), generator=rng.fold("family").generator())
        else:
            families = [families[rng.fold("family").choice(len(families))]]
        u = {
            family: torch.rand(k, FREPO_FAMILIES[family][0], generator=rng.fold(family).generator())
            for family in families
        }
        return FRePoWarp(self, u, which)

    def replay(self, state: Mapping[str, Tensor]) -> Warp:
        """Raises `BadValue` for a state that this strategy cannot have given."""
        u = {family: state[family] for family in self.families if family in state}
        which = state.get("which")
        whole = len(u) == (len(self.families) if self.each else 1) and (which is not None) == self.each
        if not whole or len(state) != len(u) + self.each:
            remedy = "Replay it with the augmentation that drew it."
            raise BadValue("augment", sorted(state), f"is no draw of {self.strategy}", remedy)
        return FRePoWarp(self, u, which)


def mirrored() -> Augment:
    """The images, and after them their mirror images: the trick by which FRePo and RCIG double small sets."""
    return Beside(augment=DSA(strategy="flip", prob_flip=1.0))


def components() -> list[type[Augment]]:
    """The members of the axis Augment that this file brings."""
    return [DSA, DCAugment, FRePoAugment]
