"""Kernels of infinitely wide ReLU networks, exact: NNGP and NTK, fully connected and convolutional.

Let k(p, q) be the covariance of what a network of random weights computes at position p of one image and at position q
of another, t(p, q) its tangent kernel, and r(p), r(q) the roots of both variances. Layer by layer,

    3 x 3 convolution, zero padding    k <- b^2 + w^2 box k,       t <- k + w^2 box t
    ReLU, with cos u = k / (r r')      k <- r r' (sin u + (pi - u) cos u) / 2 pi,       t <- t (pi - u) / 2 pi
    2 x 2 average pooling              means over both windows
    flatten                            the mean over p of k(p, p)
    dense                              as the convolution, without box

where box is the mean over nine shifts of p and q together, and t = k after the first layer. w and b are the standard
deviations of weights and biases, in NTK parametrisation (Jacot et al., arXiv:1806.07572; convolutions and pooling:
Arora et al., arXiv:1904.11955; Novak et al., arXiv:1912.02803).

What is computed, and what is not. A convolution shifts p and q alike, so it never mixes displacements d = q - p: the
covariance is held displacement by displacement, and box is a filter of an ordinary image. Only pooling mixes
displacements: one of D takes from 2D - 1, 2D and 2D + 1 before it. Flatten asks for d = 0 alone. So three poolings need
the displacements up to 7 of 32 x 32 images, 0.17 of all pairs of positions, and a network without pooling needs d = 0.
Pairs of images come last in memory, so that every operation runs over many of them, without a stride. Variances are
the same computation for an image with itself, over fewer displacements still: up to 3. The rest is fused by hand: the
arc cosine kernels of order 0 and 1 share angle and sine, factors of pi and of means are left to the next layer, and one
pass gives both products for backward.

In float32 the angle between two positions is not resolved below 1e-3 (its cosine would need more digits): such angles
are 0. Values then equal those of float64 to about 1e-6; two different images nearly alike, to 1e-4. Ridge regression
with a ridge of 1e-6 wants float64, which is the default.
"""

from __future__ import annotations

import functools
import itertools
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from condense.axes import Kernel
from condense.errors import BadValue
from condense.recipe import Recipe
from condense.task import Batch, Task

Shift = tuple[int, int]  # a displacement d = q - p, in rows and columns
Slab = tuple[Tensor, Tensor | None]  # k and t of one displacement, (rows, columns, *pairs); t None: not asked for
First = Callable[[Shift], Tensor]
Roots = Callable[[int, Shift, Tensor], tuple[Tensor, Tensor]]
HERE: Shift = (0, 0)
CELLS = 2**18  # numbers of a slab that are worked on at once on a CPU: a few such stay in its second-level cache
WIDE = 8  # so many times as many make a product of matrices
FEW = 4  # channels up to which outer products are added up sooner than matrices are multiplied
TINY = 1e-30  # a variance below which a position counts as black: nothing is divided by zero
ARRAYS, KEPT = 8, 7  # slabs that are alive in a layer, and those of each layer that backward asks for
MIB = 2**20


# -- one layer ------------------------------------------------------------------------------------------------------


class _Relu(torch.autograd.Function):
    """With m = -cos u, a = pi - u = acos m, R = r r':   k' = k a + R sin u,   t' = t a.

    dk'/dk = a,   dk'/dR = sin u,   dt'/dt = a,   dt'/dk = t / (R sin u),   dt'/dR = t m / (R sin u).
    """

    @staticmethod
    def forward(
        ctx: Any, k: Tensor, t: Tensor | None, left: Tensor, right: Tensor, both: bool, signed: bool
    ) -> tuple[Tensor, Tensor | None]:
        scale = left.neg() * right
        m = F.threshold(k / scale, 8 * torch.finfo(k.dtype).eps - 1, -1.0, inplace=True)
        if signed:
            m.clamp_(max=1)
        a = m.acos()
        if any(ctx.needs_input_grad):
            ctx.both, ctx.input = both, both and t is None
            ctx.save_for_backward(m, a, scale, left, right, *([k if t is None else t] if both else []))
            m = m.clone()
        sine, product = m.square_().neg_().add_(1).sqrt_(), k * a
        if both and t is None:
            return torch.addcmul(product, scale, sine, value=-1), product
        return product.addcmul_(scale, sine, value=-1), None if t is None else t * a

    @staticmethod
    def backward(ctx: Any, to_k: Tensor, to_t: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        m, a, scale, left, right, *tangent = ctx.saved_tensors
        sine = m.square().neg_().add_(1).sqrt_()
        grad_k, grad_t, to_scale = to_k * a, None, to_k * sine
        if ctx.both:
            assert to_t is not None
            steep = (to_t * tangent[0]).div_(sine.mul_(scale).neg_()).masked_fill_(sine == 0, 0)
            grad_k += steep
            to_scale.addcmul_(steep, m)
            grad_t = to_t * a
            if ctx.input:
                grad_k, grad_t = grad_k.add_(grad_t), None
        sides = [
            (to_scale * other).sum_to_size(side.shape) if needed else None
            for side, other, needed in ((left, right, ctx.needs_input_grad[2]), (right, left, ctx.needs_input_grad[3]))
        ]
        return grad_k, grad_t, *sides, None, None


class _Box(torch.autograd.Function):
    """The sum over 3 x 3 neighbours, zeros outside: the first two axes of (rows, columns, *pairs). Its own adjoint."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        for axis in (0, 1):
            length, y = x.shape[axis] - 1, torch.empty_like(x)
            before, behind = x.narrow(axis, 0, length), x.narrow(axis, 1, length)
            torch.add(before, behind, out=y.narrow(axis, 0, length))
            y.narrow(axis, length, 1).copy_(x.narrow(axis, length, 1))
            y.narrow(axis, 1, length).add_(before)
            x = y
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return _Box.forward(None, grad)


class _Parts(torch.autograd.Function):
    """Every second row and column of x, from each of these starts: disjoint, so that backward is one assignment."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cuts: Sequence[tuple[slice, slice]]) -> tuple[Tensor, ...]:
        ctx.cuts, ctx.shape = cuts, x.shape
        return tuple(x[cut].clone() for cut in cuts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        out = grads[0].new_zeros(ctx.shape)
        for cut, grad in zip(ctx.cuts, grads, strict=True):
            out[cut] = grad
        return out, None


# -- displacements --------------------------------------------------------------------------------------------------


def window(size: int, shift: int) -> slice:
    """The places p of `size` for which p + shift is a place too."""
    return slice(max(0, -shift), min(size, size - shift))


def pooled_from(size: int, shift: int) -> Iterator[tuple[int, slice]]:
    """Where a slab goes as 2 places become 1: the displacements after it, and which of the slab's places each takes.

    p = 2 P + parity and p + shift = 2 (P + after) + 0 or 1. With an odd size the last place is dropped.
    """
    for parity in (0, 1):
        after = (parity + shift) // 2
        start = 2 * max(0, -after) + parity - max(0, -shift)
        count = size // 2 - abs(after)
        if count > 0:
            yield after, slice(start, start + 2 * count - 1, 2)


def push(after: dict[Shift, Slab], slab: Slab, size: tuple[int, int], shift: Shift, wanted: set[Shift]) -> None:
    """Add to the sums over 2 x 2 windows of both positions what comes from one displacement."""
    targets = [
        ((di, dj), (rows, columns))
        for di, rows in pooled_from(size[0], shift[0])
        for dj, columns in pooled_from(size[1], shift[1])
        if (di, dj) in wanted
    ]
    if not targets:
        return
    parts = [_cut(x, [cut for _, cut in targets]) for x in slab if x is not None]
    for number, (target, _) in enumerate(targets):
        sums = after.get(target)
        mine = [part[number] for part in parts]
        if sums is None:
            whole = [part.contiguous() for part in mine]
            after[target] = (whole[0], whole[1] if len(whole) > 1 else None)
        else:
            for total, part in zip((x for x in sums if x is not None), mine, strict=True):
                total.add_(part)


def _cut(x: Tensor, cuts: list[tuple[slice, slice]]) -> Sequence[Tensor]:
    parts: Sequence[Tensor] = _Parts.apply(x, cuts) if x.requires_grad else [x[cut] for cut in cuts]
    return parts


# -- a network ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """Layers on positions, and the sizes of what is computed for them.

    stages: how many layers with a ReLU stand before each pooling (`pooling`), or one stage without. taps: 9 of a 3 x 3
    convolution, 1 of a dense layer (on one position). w2, b2: variances of weights and biases. tangent: the NTK; else
    the NNGP. inputs, size: the channels of an example, and its rows and columns.
    """

    stages: tuple[int, ...]
    pooling: bool
    taps: int
    w2: float
    b2: float
    tangent: bool
    inputs: int
    size: Shift

    @property
    def sizes(self) -> list[Shift]:
        """Rows and columns in each stage."""
        return [(self.size[0] >> i, self.size[1] >> i) for i in range(len(self.stages))]

    def reach(self, last: int) -> list[set[Shift]]:
        """The displacements that each stage needs if the last one needs those up to `last` in rows and columns."""
        found = []
        for i, size in enumerate(reversed(self.sizes)):
            far = (last + 1) * 2**i - 1
            rows, columns = (range(-min(far, side - 1), min(far, side - 1) + 1) for side in size)
            found.append(set(itertools.product(rows, columns)))
        return found[::-1]

    def linear(self, slab: Slab, unit: float) -> Slab:
        """A convolution or a dense layer. unit: k and t are this times what the slab holds."""
        k, t = (None if x is None else x if self.taps == 1 else _Box.apply(x) for x in slab)
        assert k is not None
        scale = self.w2 * unit / self.taps
        k = torch.add(k.new_full((), self.b2), k, alpha=scale)
        return k, None if t is None else torch.add(k, t, alpha=scale)

    def unit(self, pooled: bool) -> float:
        """What slabs are multiplied by after a ReLU, and after a pooling behind it."""
        return 1 / (2 * math.pi * (16 if pooled else 1))

    def walk(self, first: First, roots: Roots, tangent: bool, last: int, mirrored: bool) -> Slab:
        """k and t of displacement 0 after all stages: sums over the windows of the last pooling, without its unit.

        first: the products of two images at a displacement, summed over channels. roots: the roots of the variances on
        both sides of a layer's k; displacement 0 is asked first. mirrored: is k(p, p + d) = k(p + d, p)? Then half of
        the displacements suffice.
        """
        here: dict[Shift, Slab] = {}
        reach, number = [*self.reach(last), {HERE}], 0
        for stage, (layers, size) in enumerate(zip(self.stages, self.sizes, strict=True)):
            after: dict[Shift, Slab] = {}
            wanted = {shift for shift in reach[stage + 1] if shift >= HERE} if mirrored else reach[stage + 1]
            for shift in sorted(reach[stage], key=lambda shift: (shift != HERE, shift)):
                if mirrored and shift < HERE:
                    continue
                slab = here.pop(shift) if stage else (first(shift), None)
                for layer in range(layers):
                    unit = self.unit(self.pooling and layer == 0) if stage or layer else 1 / self.inputs
                    slab = self.linear(slab, unit)
                    sides = roots(number + layer, shift, slab[0])
                    slab = _Relu.apply(*slab, *sides, tangent, not (stage or layer))
                if not self.pooling:
                    return slab
                for side in {shift, (-shift[0], -shift[1])} if mirrored else {shift}:
                    push(after, slab, size, side, wanted)
            here, number = after, number + layers
        return here[HERE]

    def variances(self, x: Tensor) -> list[Tensor]:
        """The roots of the variances before each ReLU, (rows, columns, N) each: the kernel of images and themselves."""
        z, found = places(x), list[Tensor]()

        def first(shift: Shift) -> Tensor:
            mine, there = both(self.size, shift)
            return (z[mine] * z[there]).sum(-1)

        def roots(number: int, shift: Shift, k: Tensor) -> tuple[Tensor, Tensor]:
            if shift == HERE:
                found.append(k.clamp_min(TINY).sqrt())
            mine, there = both(found[number].shape, shift)
            return found[number][mine], found[number][there]

        self.walk(first, roots, False, 0, True)
        return found

    def block(self, a: Tensor, b: Tensor, left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
        """The kernel, (n, m), of images a (n, C, rows, columns) and b (m, ...); left, right: their `variances`."""
        za, zb = places(a), places(b)
        if self.taps == 1:  # one product of matrices, and the rest of it in pieces that stay in the cache
            k = products(za, zb)
            height = max(1, CELLS // 4 // k.shape[-1])
            parts = zip(*(cut(x, height, 2) for x in (k, *left)), strict=True)
            return torch.cat([self._block(functools.partial(given, part), of, right) for part, *of in parts])

        def first(shift: Shift) -> Tensor:
            mine, there = both(self.size, shift)
            return products(za[mine], zb[there])

        return self._block(first, left, right)

    def _block(self, first: First, left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
        def roots(number: int, shift: Shift, k: Tensor) -> tuple[Tensor, Tensor]:
            mine, there = both(left[number].shape, shift)
            return left[number][mine].unsqueeze(-1), right[number][there].unsqueeze(-2)

        k, t = self.walk(first, roots, self.tangent, 1 if self.pooling else 0, False)
        unit = self.w2 * self.unit(self.pooling) / k.shape[0] / k.shape[1]
        out = k.sum((0, 1)) * unit + self.b2
        return out if t is None else out + t.sum((0, 1)) * unit

    # -- memory -----------------------------------------------------------------------------------------------------

    def per_pair(self, live: bool, item: int) -> int:
        """Bytes that a pair of images takes while its block is computed. live: with gradients."""
        reach = self.reach(1 if self.pooling else 0)
        cells = [
            sum((h - abs(di)) * (w - abs(dj)) for di, dj in r) for r, (h, w) in zip(reach, self.sizes, strict=True)
        ]
        arrays = 2 if self.tangent else 1
        waiting = max(arrays * sum(pair) for pair in itertools.pairwise([0, *cells[1:], 0]))
        kept = sum(KEPT * layers * held for layers, held in zip(self.stages, cells, strict=True)) if live else 0
        return item * (waiting + kept + ARRAYS * self.size[0] * self.size[1])

    def per_side(self, item: int) -> int:
        """Bytes that an image takes on each side of a block."""
        return item * self.size[0] * self.size[1] * (self.inputs + sum(self.stages))


def places(x: Tensor) -> Tensor:
    """Images (N, C, rows, columns) as (rows, columns, N, C), so that many channels lie together, and few ones apart."""
    few = x.shape[1] <= FEW
    return x.permute(2, 3, 1, 0).contiguous().mT if few else x.permute(2, 3, 0, 1).contiguous()


def cut(x: Tensor, length: int, dim: int = 0) -> tuple[Tensor, ...]:
    pieces: tuple[Tensor, ...] = x.split(length, dim=dim)  # type: ignore[no-untyped-call]
    return pieces


def given(slab: Tensor, shift: Shift) -> Tensor:
    return slab


def products(a: Tensor, b: Tensor) -> Tensor:
    """Sums over channels, (rows, columns, n, m), of (rows, columns, n, C) and (rows, columns, m, C)."""
    if a.shape[-1] > FEW:
        return a @ b.mT
    a, b = a.unsqueeze(-2), b.unsqueeze(-3)
    out = a[..., 0] * b[..., 0]
    for c in range(1, a.shape[-1]):
        out = out.addcmul(a[..., c], b[..., c])
    return out


def both(size: Sequence[int], shift: Shift) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The places p for which p + shift is a place too, and these places p + shift."""
    rows, columns = size[:2]
    (up, across), there = shift, (-shift[0], -shift[1])
    return (window(rows, up), window(columns, across)), (window(rows, there[0]), window(columns, there[1]))


# -- in blocks ------------------------------------------------------------------------------------------------------


def pairs_at_once(network: Network, dtype: torch.dtype, device: str, live: bool, memory: int) -> int:
    """How many pairs of images make a block that stays within `memory` bytes; on a CPU few enough for its cache.

    Raises `BadValue` where one pair does not fit.
    """
    pair, side = network.per_pair(live, dtype.itemsize), network.per_side(dtype.itemsize)
    root: float = (side**2 + pair * memory) ** 0.5 - side  # n pairs are of 2 sqrt(n) images
    found = math.floor(root**2 / pair**2)
    if found < 1:
        problem = f"holds less than one pair of images, which takes {math.ceil((pair + 2 * side) / MIB)} MiB"
        remedy = (
            "Give the kernel more: --set objective.kernel.memory=4096 (labels.kernel, protocol.kernel: where it is)."
        )
        raise BadValue("kernel.memory", f"{memory / MIB:g} MiB", problem, remedy)
    most = CELLS * WIDE if network.taps == 1 else CELLS // math.prod(network.size)
    return min(found, max(1, most)) if device == "cpu" else found


def blocks_of(n: int, m: int, pairs: int) -> tuple[int, int]:
    """Rows and columns of blocks of at most so many pairs of n and m images: nearly square, or as long as it goes."""
    columns = min(m, max(1, math.isqrt(pairs), pairs // n))
    return min(n, max(1, pairs // columns)), columns


def again(function: Callable[..., Any], live: bool, *parts: Any) -> Any:
    """function(*parts), whose intermediates are computed again for the backward pass instead of being kept."""
    return checkpoint(function, *parts, use_reentrant=False, preserve_rng_state=False) if live else function(*parts)


def gram(network: Network, a: Tensor, b: Tensor, memory: int) -> Tensor:
    """The kernel (n, m) of images a (n, C, rows, columns) and b (m, ...), in their dtype; differentiable in both.

    Where b is a, one triangle of blocks is computed. memory: bytes of a block, beside inputs, their
    variances and the result.
    """
    live = torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)
    pairs = pairs_at_once(network, a.dtype, a.device.type, live, memory)
    rows, columns = blocks_of(len(a), len(b), pairs)
    if b is a:
        rows = columns = max(1, min(len(a), math.isqrt(pairs)))
    left = sides(network, a, rows, pairs)
    right = left if b is a else sides(network, b, columns, pairs)
    made: list[list[Tensor]] = []
    for i, (x, of_x) in enumerate(left):
        made.append([])
        for j, (y, of_y) in enumerate(right):
            mirrored = b is a and j < i
            block = made[j][i].mT if mirrored else again(network.block, live, x, y, of_x, of_y)
            made[i].append((block + block.mT) / 2 if b is a and j == i else block)  # rounding differs by place
    return torch.cat([torch.cat(row, dim=1) for row in made])


def sides(network: Network, x: Tensor, length: int, most: int) -> list[tuple[Tensor, list[Tensor]]]:
    """Images in pieces of `length`, each with its variances; these are computed for at most `most` images at once."""
    live = torch.is_grad_enabled() and x.requires_grad
    few = max(1, min(most, CELLS // math.prod(x.shape[1:])))
    found = [again(network.variances, live, part) for part in cut(x, few)]
    roots = [cut(torch.cat(layer, dim=-1), length, -1) for layer in zip(*found, strict=True)]
    return [(part, list(of)) for part, *of in zip(cut(x, length), *roots, strict=True)]


# -- members of the axis --------------------------------------------------------------------------------------------


class Infinite(Kernel):
    """What the kernels of infinitely wide networks share.

    kind: the tangent kernel (`ntk`) or the covariance (`nngp`). weight_std, bias_std: of every layer; sqrt(2) and 0.1
    in KIP. dtype: what all is computed in. memory: MiB that a block may take, beside inputs, their
    variances and the result.
    Raises `BadValue` for examples that are no images, and where `memory` does not hold one pair of them.
    """

    depth: int = Field(ge=1)
    kind: Literal["ntk", "nngp"] = "ntk"
    weight_std: float = Field(default=math.sqrt(2), gt=0)
    bias_std: float = Field(default=0.1, ge=0)
    dtype: Literal["float64", "float32"] = "float64"
    memory: int = Field(default=1024, ge=1)

    @abstractmethod
    def seen(self, x: Tensor) -> Tensor:
        """Examples as (N, C, rows, columns)."""

    @abstractmethod
    def stages(self, size: Shift) -> tuple[tuple[int, ...], bool, int]:
        """`Network`'s stages, pooling and taps for images of this size. Raises `BadValue` where they do not fit."""

    def network(self, x: Tensor) -> Network:
        inputs, *size = x.shape[1:]
        stages, pooling, taps = self.stages((size[0], size[1]))
        variances = (self.weight_std**2, self.bias_std**2)
        return Network(stages, pooling, taps, *variances, self.kind == "ntk", inputs, (size[0], size[1]))

    def check(self, recipe: Recipe, task: Task) -> None:
        blank = task.form.blank(task, 1)
        if not isinstance(blank, Tensor):
            problem = f"compares tensors, and these are {task.form.noun}"
            raise BadValue("kernel", self.name, problem, "Use a kernel of that domain.")
        x = self.seen(blank)
        pairs_at_once(self.network(x), getattr(torch, self.dtype), "cpu", True, self.memory * MIB)

    def __call__(self, model: nn.Module | None, a: Batch, b: Batch) -> Tensor:
        dtype = getattr(torch, self.dtype)
        x = self.seen(a.x).to(dtype)
        y = x if b is a or b.x is a.x else self.seen(b.x).to(dtype)
        return gram(self.network(x), x, y, self.memory * MIB)


@final
class InfiniteMLP(Infinite):
    """The kernel of a fully connected ReLU network with `depth` hidden layers, on flattened examples; see the module.

    Depth 1 is the FC-1 of KIP (arXiv:2011.00050).
    """

    depth: int = Field(default=1, ge=1)

    def seen(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :, None, None]

    def stages(self, size: Shift) -> tuple[tuple[int, ...], bool, int]:
        return (self.depth,), False, 1


@final
class InfiniteConvNet(Infinite):
    """The kernel of a convolutional ReLU network, with a dense layer on the flattened last one; see the module.

    depth: blocks of a 3 x 3 convolution, ReLU and, with pool `avg`, 2 x 2 average pooling; an odd row or column at the
    end is dropped by pooling. extra: one more convolution and ReLU in front, as in the ConvNet of KIP
    (arXiv:2107.13034), whose ConvNet3 is without. pool `none` is the Conv of the code of arXiv:2011.00050.
    """

    depth: int = Field(default=3, ge=1)
    extra: bool = True
    pool: Literal["avg", "none"] = "avg"

    def seen(self, x: Tensor) -> Tensor:
        if x.dim() != 4:
            problem = f"compares images (C, rows, columns), and an example is {tuple(x.shape[1:])}"
            raise BadValue("kernel", self.name, problem, "Use infinite-mlp.")
        return x

    def stages(self, size: Shift) -> tuple[tuple[int, ...], bool, int]:
        if self.pool == "none":
            return (self.depth + self.extra,), False, 9
        if min(size) >> self.depth < 1:
            problem = f"poolings leave nothing of images of {size[0]} x {size[1]}"
            raise BadValue("kernel.depth", self.depth, problem, f"Use at most {min(size).bit_length() - 1}.")
        return (1 + self.extra, *[1] * (self.depth - 1)), True, 9
