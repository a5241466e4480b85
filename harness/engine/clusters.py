"""Product quantisation: pieces of vectors, each named by the nearest of a few centroids.

k-means as Lloyd has it, from entries that are evenly spaced, so that the same entries give the same
centroids (Jegou et al., doi 10.1109/TPAMI.2010.57). It must not know caches.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 12  # of k-means
_AT_ONCE = 2**24  # distances


def fit(vectors: Tensor, counts: Tensor, parts: int, bits: int) -> Tensor:
    """Centroids [R, parts, K, sub] of the first counts[r] of vectors [R, n, d], d = parts * sub.

    K = 2**bits, or the most that any row has where that is fewer. counts int64 [R] on the host. A
    row with up to K vectors has them as its centroids; what is behind these is 0 and means nothing.
    """
    size = max(1, min(2**bits, int(counts.max())))
    pieces = vectors.unflatten(-1, (parts, -1)).transpose(1, 2)  # [R, parts, n, sub]
    found = pieces.new_zeros(len(vectors), parts, size, pieces.shape[-1])
    for count in filter(None, set(counts.tolist())):
        alike = (counts == count).nonzero()[:, 0].to(vectors.device)
        own = pieces[alike, :, :count].float().flatten(0, 1)
        centroids = _fit(own, size).unflatten(0, (len(alike), parts))
        found[alike, :, : min(size, count)] = centroids.to(found.dtype)
    return found


def _fit(pieces: Tensor, size: int) -> Tensor:
    """Centroids [p, min(size, n), sub] of pieces [p, n, sub]."""
    count = pieces.shape[1]
    if count <= size:
        return pieces
    start = torch.arange(size, device=pieces.device) * count // size
    centroids = pieces[:, start]
    for _ in range(ROUNDS):
        centroids = _moved(pieces, centroids)
    return centroids


def _moved(pieces: Tensor, centroids: Tensor) -> Tensor:
    """Each centroid where the mean is of the pieces that are nearest to it, if there are any.

    Sums are products: on a GPU additions at an index come in any order.
    """
    sums, members = torch.zeros_like(centroids), torch.zeros_like(centroids[..., :1])
    norms = centroids.square().sum(-1)[:, None]
    names = torch.arange(centroids.shape[1], device=pieces.device)
    block = max(1, _AT_ONCE // (centroids.shape[0] * centroids.shape[1]))
    for each in pieces.split(block, 1):
        nearest = (norms - 2 * each @ centroids.mT).argmin(-1, keepdim=True)
        chosen = (nearest == names).to(each.dtype)  # [p, n, K]
        sums += chosen.mT @ each
        members += chosen.sum(1)[..., None]
    return torch.where(members > 0, sums / members.clamp_min(1), centroids)


def encode(vectors: Tensor, books: Tensor, sizes: Tensor, rows: Tensor) -> Tensor:
    """Codes uint8 [P, n, parts] of vectors [P, n, d] by the centroids books[rows[p]].

    books [R, parts, K, sub], of which the first sizes[r] count; rows int64 [P]; all on one device.
    """
    parts, size = books.shape[1:3]
    beyond = torch.arange(size, device=books.device) >= sizes[:, None]  # [R, K]
    norms = books.float().square().sum(-1).masked_fill(beyond[:, None], torch.inf)
    found = []
    block = max(1, _AT_ONCE // (parts * size * max(1, vectors.shape[1])))
    for part, own in zip(vectors.split(block), rows.split(block), strict=True):
        pieces = part.float().unflatten(-1, (parts, -1)).transpose(1, 2)  # [p, parts, n, sub]
        products = pieces @ books[own].float().mT
        found.append((norms[own][:, :, None] - 2 * products).argmin(-1).to(torch.uint8))
    return torch.cat(found).transpose(1, 2)


def decode(codes: Tensor, books: Tensor, rows: Tensor) -> Tensor:
    """Vectors [P, n, d] of codes [P, n, parts]: the centroids that they name."""
    parts, size = books.shape[1:3]
    first = (rows[:, None] * parts + torch.arange(parts, device=rows.device)) * size  # [P, parts]
    index = first[:, None] + codes.long()
    return books.reshape(-1, books.shape[-1])[index].flatten(2)
