"""Multi-head attention over explicit heads."""

import torch
import torch.nn.functional as F
from torch import Tensor

from audioldm2.ops import linear_kernels as products
from audioldm2.ops.dispatch import Kernel, Operation

MANY_KEYS = 256  # from which two products a head may be worth trying
SCORES = 2**20  # of a head at once: 4 MB, which stay in the cache from one product to the next
EXCERPT = 512  # queries


def reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: int,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    query, key, value = (
        x.unflatten(-1, (heads, -1)).transpose(1, 2)  # (batch, heads, seq, head_dim)
        for x in (query, key, value)
    )
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    return mixed.transpose(1, 2).flatten(2)  # (batch, queries, dim)


def by_products(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: int,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """A head at a time: one oneDNN product, a softmax, another product.

    PyTorch's CPU kernel takes its products from MKL, as its linear layers do. Scores are float32 in bfloat16
    networks too, where large ones would lose several percent to rounding.
    """
    queries, keys = query.shape[1], key.shape[1]
    # (batch * heads, seq, head_dim), each head contiguous: oneDNN takes a thousand times as long for slices.
    q, k, v = (
        x.unflatten(2, (heads, -1)).transpose(1, 2).contiguous().flatten(0, 1).float()
        for x in (query, key, value)
    )
    q = q * (q.shape[-1] ** -0.5 if scale is None else scale)
    mixed, rows = torch.empty_like(q), max(SCORES // keys, 128)
    for head in range(len(q)):
        for start in range(0, queries, rows):
            block = slice(start, start + rows)
            scores = products.onednn(q[head, block], k[head])  # (queries of the block, keys)
            torch.softmax(scores, dim=-1, out=scores)  # in place: new memory costs page faults
            mixed[head, block] = products.onednn(scores, v[head].T)
    return mixed.unflatten(0, (-1, heads)).transpose(1, 2).flatten(2).to(query.dtype)


def _applies(
    query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None, scale: float | None
) -> bool:
    return mask is None and key.shape[1] >= MANY_KEYS and len(key) == len(query)


def _shape_class(
    query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None, scale: float | None
) -> tuple:
    return heads, query.shape[2], query.shape[1].bit_length(), key.shape[1].bit_length(), mask is None


def _excerpt(
    query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None, scale: float | None
) -> tuple:
    return query[:1, :EXCERPT], key[:1], value[:1], heads, mask, scale


_attention = Operation(
    "attention", reference, [Kernel("products", by_products, _applies)], _shape_class, _excerpt
)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: int,
    *,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Multi-head attention, softmax(q kᵀ scale + mask) v, of projected inputs.

    Args:
        query: (batch, queries, dim), dim = heads * head_dim.
        key: (batch, keys, dim).
        value: (batch, keys, dim).
        heads: number of heads.
        mask: broadcastable to (batch, heads, queries, keys): bool, True = attend; or float, added.
        scale: 1/sqrt(head_dim) unless given (T5 uses 1).

    Returns:
        (batch, queries, dim).
    """
    return _attention(query, key, value, heads, mask, scale)
