"""Preprocessing: from raw images to what networks see, fitted on the training set, and back for pictures.

The two whitenings of the literature do not agree, and sets learned under one are useless under the other. With X the n
flattened training images of d numbers, l and U the eigenvalues and eigenvectors of their covariance:

    kornia (MTT, DATM, DD-Ranking)   x in [0, 1]; covariance about the mean, over n - 1; U (l + 0.1)^(-1/2) U'
    KIP    (KIP, RFAD, DC-BENCH)     x standardised by channel, then centred and scaled to length 1, image by image;
                                     second moments about zero, over n; U (l + 0.1 tr/d)^(-1/2) U'
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, Self, final

import torch
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor

from condense.axes import Preprocess, Transform
from condense.data import Source
from condense.errors import BadData, BadValue
from condense.recipe import Reads, Recipe
from condense.task import Task

BLOCK = 512  # images that a fit holds at once, as float64
WIDEST = 20_000  # numbers of an image that whitening takes: its matrices have the square of that
FLAT = 1e-4  # length of a centred, standardised image below which it is rounding: one grey level in one pixel has 1e-2
GIB = 2**30


# -- pure functions of tensors --------------------------------------------------------------------------------------


def unit(raw: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Raw examples in [0, 1]: uint8 is divided by 255, floating numbers are taken as they are.

    Raises `BadData` for other whole numbers, whose range nobody knows.
    """
    if raw.dtype == torch.uint8:
        return raw.to(dtype).div(255)
    if raw.is_floating_point():
        return raw.to(dtype)
    raise BadData("x", str(raw.dtype), "is neither uint8 nor floating", "Give images as uint8 or as floats in [0, 1].")


def by_channel(values: Tensor, x: Tensor) -> Tensor:
    """(C,) shaped so that it broadcasts over x, (N, C, ...)."""
    return values.view((-1, *[1] * (x.dim() - 2)))


def channel_moments(train: Source) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of a raw source in [0, 1], over all images and pixels; (C,) float64.

    A channel that does not vary has deviation 1: it stays as it is.
    """
    total = square = torch.zeros((), dtype=torch.float64, device=train.device)
    count = 0
    for batch in train.sweep(BLOCK):
        x = unit(batch.x, torch.float64).transpose(0, 1).flatten(1)
        count += x.shape[1]
        total, square = total + x.sum(1), square + x.square().sum(1)
    mean = total / count
    variance = square / count - mean.square()
    return mean, torch.where(variance > 1e-12, variance, 1.0).sqrt()


def second_moments(blocks: Iterator[Tensor], d: int, device: torch.device) -> tuple[int, Tensor, Tensor]:
    """n, the sum (d,) and the sum of outer products (d, d) of the rows of (n, d) float64 blocks."""
    count, total = 0, torch.zeros(d, dtype=torch.float64, device=device)
    products = torch.zeros(d, d, dtype=torch.float64, device=device)
    for rows in blocks:
        count += len(rows)
        total += rows.sum(0)
        products.addmm_(rows.T, rows)
    return count, total, products


def whitener(moments: Tensor, ridge: float | Tensor, rank: int | None = None) -> Tensor:
    """The symmetric matrix U (l + ridge)^(-1/2) U' of second moments (d, d) = U diag(l) U'.

    `rank`: directions beyond the first so many are left as they are (factor 1).
    """
    values, vectors = torch.linalg.eigh(moments)  # ascending
    factors = (values.clamp_min(0) + ridge).rsqrt()
    if rank is not None and rank < len(factors):
        factors[: len(factors) - rank] = 1
    matrix: Tensor = (vectors * factors) @ vectors.T
    return matrix


def unwhiten(x: Tensor, matrix: Tensor) -> Tensor:
    """Rows whose product with the (d, d) matrix is x, flattened: (N, d)."""
    rows: Tensor = torch.linalg.solve(matrix, x.flatten(1).to(matrix.dtype), left=False)
    return rows


def standard(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return (x - by_channel(mean, x)) / by_channel(std, x)


def unstandard(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """The inverse of `standard`, to rounding."""
    return x * by_channel(std, x) + by_channel(mean, x)


def sphere(x: Tensor) -> tuple[Tensor, Tensor]:
    """Flattened images, each centred and of length 1, and the lengths they had: (N, d), (N,). Flat ones give zeros."""
    rows = x.flatten(1)
    rows = rows - rows.mean(1, keepdim=True)
    length = rows.norm(dim=1)
    return rows / torch.where(length > FLAT, length, math.inf)[:, None], length


def check_width(task: Task) -> None:
    """Refuse, before anything is computed, images whose covariance would not fit in memory."""
    d = math.prod(task.shape)
    if d > WIDEST:
        needed = 5 * 8 * d * d / GIB  # the covariance, its eigenvectors, the result, and as much again while solving
        problem = f"whitening {d:,} numbers an image takes matrices of {d:,} x {d:,}: {needed:,.0f} GiB of memory"
        raise BadValue("preprocess", task.shape, problem, f"Use `normalise`, or images of at most {WIDEST:,} numbers.")


def check_channels(given: tuple[float, ...], task: Task, where: str) -> None:
    if len(given) != task.shape[0]:
        problem = f"has {len(given)} numbers for images of {task.shape[0]} channels"
        raise BadValue(where, given, problem, "Give one number for each channel, or leave it to be measured.")


def shortest(values: Tensor) -> list[float]:
    """Numbers as short as float32 tells them apart."""
    return [float(f"{value:.7g}") for value in values.tolist()]


# -- none, normalise ------------------------------------------------------------------------------------------------


@final
class Unit(Transform):
    """uint8 to [0, 1], and nothing else."""

    def encode(self, raw: Tensor) -> Tensor:
        return unit(raw)

    def decode(self, x: Tensor) -> Tensor:
        return x

    def describe(self) -> dict[str, Any]:
        return {"name": NoPreprocess.name, "origin": self.origin}


@final
class NoPreprocess(Preprocess):
    """Images in [0, 1]: uint8 is divided by 255, floats are taken as they are."""

    name: ClassVar[str] = "none"

    def fit(self, train: Source, facts: Any) -> Transform:
        return Unit()

    def blank(self, task: Task) -> Transform:
        return Unit()


class ByChannel(Transform):
    """Abstract: images in [0, 1] are standardised channel by channel first, by mean and std, (C,).

    All constants are buffers in float32.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, **constants: Tensor) -> None:
        super().__init__()
        for name, value in constants.items():
            self.register_buffer(name, value.float())

    def constants(self) -> dict[str, list[float]]:
        return {"mean": shortest(self.mean), "std": shortest(self.std)}


@final
class Standardise(ByChannel):
    """(x - mean) / std, channel by channel, of x in [0, 1]. `measured`: are they the training images' own?"""

    measured: Tensor

    def __init__(self, mean: Tensor, std: Tensor, measured: bool) -> None:
        super().__init__(mean=mean, std=std)
        self.register_buffer("measured", torch.tensor(measured, device=mean.device))

    @property
    def origin(self) -> Literal["public", "data"]:  # type: ignore[override]  # follows the buffer, also once loaded
        return "data" if bool(self.measured) else "public"

    def encode(self, raw: Tensor) -> Tensor:
        return standard(unit(raw), self.mean, self.std)

    def decode(self, x: Tensor) -> Tensor:
        return unstandard(x, self.mean, self.std)

    def describe(self) -> dict[str, Any]:
        return {"name": Normalise.name, "origin": self.origin, **self.constants()}


@final
class Normalise(Preprocess):
    """Channel by channel to mean 0 and deviation 1: (x - mean) / std, of x in [0, 1].

    The constants are those given here, else the ones published with the data set, else measured on the training images
    (in float64; then the transform's `origin` is "data"). Code bases disagree on them: FRePo divides CIFAR-10 by
    0.247 0.2435 0.2616, its deviation over all pixels, DC, DM and MTT by 0.2023 0.1994 0.2010.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise PydanticCustomError("component", "mean and std must be given together, one number each per channel")
        if any(value <= 0 for value in self.std or ()):
            raise PydanticCustomError("component", "std must be above 0")
        return self

    def check(self, recipe: Recipe, task: Task) -> None:
        if self.mean is not None:
            check_channels(self.mean, task, "preprocess.mean")

    def fit(self, train: Source, facts: Any) -> Transform:
        """Raises `BadValue` where the constants are not one for each channel."""
        mean, std = (self.mean, self.std) if self.mean is not None else (facts.mean, facts.std)
        if mean is None or std is None:
            return Standardise(*channel_moments(train), measured=True)
        check_channels(mean, train.task, "preprocess.mean")
        check_channels(std, train.task, "preprocess.std")
        return Standardise(torch.tensor(mean), torch.tensor(std), measured=False).to(train.device)

    def blank(self, task: Task) -> Transform:
        return Standardise(torch.zeros(task.shape[0]), torch.ones(task.shape[0]), measured=False)


# -- whitening ------------------------------------------------------------------------------------------------------


@final
class KorniaWhitening(Transform):
    """(x - mean) @ matrix, of flattened x in [0, 1]. mean: (d,); matrix: (d, d), symmetric, d = C H W."""

    origin = "data"
    mean: Tensor
    matrix: Tensor

    def __init__(self, mean: Tensor, matrix: Tensor, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("mean", mean.float())
        self.register_buffer("matrix", matrix.float())

    def encode(self, raw: Tensor) -> Tensor:
        return ((unit(raw).flatten(1) - self.mean) @ self.matrix).view(raw.shape)

    def decode(self, x: Tensor) -> Tensor:
        return (unwhiten(x, self.matrix) + self.mean).view(x.shape)

    def describe(self) -> dict[str, Any]:
        return {"name": ZcaKornia.name, "origin": self.origin, "eps": self.eps}


class Whitening(Preprocess):
    """Abstract: preprocessing by a covariance of the training images, which reads them and cannot be of any width."""

    def check(self, recipe: Recipe, task: Task) -> None:
        check_width(task)

    def reads(self, recipe: Recipe) -> Reads:
        return Reads(examples=True)


@final
class ZcaKornia(Whitening):
    """ZCA whitening as kornia's `ZCAWhitening(eps=0.1)` does it, fitted on the training images in [0, 1].

    The covariance is the unbiased one (over n - 1), and eps is added to its eigenvalues before the root. Fitted in
    float64 (kornia: float32), in blocks, so that memory does not grow with the number of images.
    """

    eps: float = Field(default=0.1, gt=0)

    def fit(self, train: Source, facts: Any) -> Transform:
        """Raises `BadValue` for images too wide to whiten, `BadData` for a single one."""
        check_width(train.task)
        if len(train) < 2:
            raise BadData("train", len(train), "has no covariance", "Give at least two images.")
        blocks = (unit(batch.x, torch.float64).flatten(1) for batch in train.sweep(BLOCK))
        n, total, products = second_moments(blocks, math.prod(train.task.shape), train.device)
        mean = total / n
        covariance = products.addr_(mean, total, alpha=-1).div_(n - 1)
        return KorniaWhitening(mean, whitener(covariance, self.eps), self.eps)

    def blank(self, task: Task) -> Transform:
        check_width(task)
        d = math.prod(task.shape)
        return KorniaWhitening(torch.zeros(d), torch.eye(d), self.eps)


@final
class KipWhitening(ByChannel):
    """standardise, centre and scale each image to length 1, then @ matrix, (d, d). mean, std: (C,) of [0, 1].

    `length`: the mean length that images of the training set had before they were scaled. `decode` cannot know an
    image's own mean and length, which `encode` drops: it gives the unwhitened image at the mean length and around the
    channel means. So decode(encode(x)) is x in another contrast and brightness; encoded again, it is encode(x).
    """

    origin = "data"
    length: Tensor
    matrix: Tensor

    def __init__(self, mean: Tensor, std: Tensor, length: Tensor, matrix: Tensor, reg: float) -> None:
        super().__init__(mean=mean, std=std, length=length, matrix=matrix)
        self.reg = reg

    def encode(self, raw: Tensor) -> Tensor:
        rows, _ = sphere(standard(unit(raw), self.mean, self.std))
        return (rows @ self.matrix).view(raw.shape)

    def decode(self, x: Tensor) -> Tensor:
        rows = (unwhiten(x, self.matrix) * self.length).view(x.shape)
        return unstandard(rows, self.mean, self.std)

    def describe(self) -> dict[str, Any]:
        return {"name": ZcaKip.name, "origin": self.origin, "reg": self.reg, **self.constants()}


@final
class ZcaKip(Whitening):
    """Regularised ZCA as in KIP's released code (arXiv:2107.13034).

    Images are standardised by channel with the training set's own constants, then centred and scaled to length 1 one by
    one. Their second moments (about zero, over n) are regularised by `reg` times their trace over d. Where there are
    fewer images than numbers in one, the directions beyond the n-th keep the factor 1, as there. A flat image gives
    zeros (there: NaN). FRePo differs: it subtracts the mean image and does not scale images one by one.
    """

    reg: float = Field(default=0.1, gt=0)

    def fit(self, train: Source, facts: Any) -> Transform:
        """Raises `BadValue` for images too wide to whiten, `BadData` where every image is flat."""
        check_width(train.task)
        mean, std = channel_moments(train)
        lengths: list[Tensor] = []

        def block(raw: Tensor) -> Tensor:
            rows, length = sphere(standard(unit(raw, torch.float64), mean, std))
            lengths.append(length)
            return rows

        d = math.prod(train.task.shape)
        n, _, products = second_moments((block(batch.x) for batch in train.sweep(BLOCK)), d, train.device)
        if not products.any():
            raise BadData("train", f"{n} images", "every image is of one grey", "Check how the images are read.")
        moments = products.div_(n)
        matrix = whitener(moments, self.reg * moments.trace() / d, rank=n)
        return KipWhitening(mean, std, torch.cat(lengths).mean(), matrix, self.reg)

    def blank(self, task: Task) -> Transform:
        check_width(task)
        c, d = task.shape[0], math.prod(task.shape)
        return KipWhitening(torch.zeros(c), torch.ones(c), torch.ones(()), torch.eye(d), self.reg)


@final
class FRePoWhitening(ByChannel):
    """(standardised x, flattened, - shift) @ matrix. mean, std: (C,) of [0, 1]; shift: (d,); matrix: (d, d)."""

    origin = "data"
    shift: Tensor
    matrix: Tensor

    def __init__(self, mean: Tensor, std: Tensor, shift: Tensor, matrix: Tensor, reg: float) -> None:
        super().__init__(mean=mean, std=std, shift=shift, matrix=matrix)
        self.reg = reg

    def encode(self, raw: Tensor) -> Tensor:
        rows = standard(unit(raw), self.mean, self.std).flatten(1) - self.shift
        return (rows @ self.matrix).view(raw.shape)

    def decode(self, x: Tensor) -> Tensor:
        rows = (unwhiten(x, self.matrix) + self.shift).view(x.shape)
        return unstandard(rows, self.mean, self.std)

    def describe(self) -> dict[str, Any]:
        return {"name": ZcaFRePo.name, "origin": self.origin, "reg": self.reg, **self.constants()}


@final
class ZcaFRePo(Whitening):
    """Regularised ZCA as in the released code of FRePo (arXiv:2206.00719), which RCIG shares.

    Images are standardised by channel with the training set's own moments, which that code writes out (and not those
    that DC's code has for CIFAR-10), and the mean image is subtracted (`centred`). Their covariance, over n, is
    regularised by `reg` times its trace over d. centred=false leaves the mean image in, as RFAD's code does
    (arXiv:2210.12067). Unlike in `zca-kip`, images are not scaled one by one. Where there are fewer images than numbers
    in one, the directions beyond the n-th keep the factor 1.
    """

    name: ClassVar[str] = "zca-frepo"
    reg: float = Field(default=0.1, gt=0)
    centred: bool = True

    def fit(self, train: Source, facts: Any) -> Transform:
        """Raises `BadValue` for images too wide to whiten."""
        check_width(train.task)
        mean, std = channel_moments(train)
        rows = (standard(unit(batch.x, torch.float64), mean, std).flatten(1) for batch in train.sweep(BLOCK))
        d = math.prod(train.task.shape)
        n, total, products = second_moments(rows, d, train.device)
        shift = total / n if self.centred else torch.zeros_like(total)
        moments = products.div_(n).addr_(shift, shift, alpha=-1)
        matrix = whitener(moments, self.reg * moments.trace() / d, rank=n)
        return FRePoWhitening(mean, std, shift, matrix, self.reg)

    def blank(self, task: Task) -> Transform:
        check_width(task)
        c, d = task.shape[0], math.prod(task.shape)
        return FRePoWhitening(torch.zeros(c), torch.ones(c), torch.zeros(d), torch.eye(d), self.reg)


def components() -> list[type[Preprocess]]:
    """The members of the axis Preprocess that this file brings."""
    return [NoPreprocess, Normalise, ZcaKornia, ZcaKip, ZcaFRePo]
