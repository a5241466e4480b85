"""Product quantisation against numpy: centroids, codes, what comes back, and its bytes."""

from __future__ import annotations

import numpy as np
import pytest
import stored_oracle as oracle
import torch

from harness.engine import clusters
from harness.engine.columns import ByCodes
from harness.engine.reached import fewest, masses

NEAR = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def drawn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize(("parts", "bits"), [(1, 8), (2, 1), (3, 3), (6, 2), (12, 4)])
def test_keys_come_back_as_their_nearest_centroids(parts, bits, dtype, monkeypatch):
    """Rows of other lengths, one without entries; in blocks as at once."""
    counts = torch.tensor([70, 1, 0, 33])
    every = drawn(parts, 4, 70, 12).to(dtype)
    owner = torch.tensor([3, 0, 0, 1])
    keys = drawn(bits, 4, 5, 12).to(dtype)
    column = ByCodes.of(keys, owner, every, counts, parts, bits)
    found = column.read(owner).float().numpy()
    for group, row in enumerate(owner.tolist()):
        books = oracle.books_of(every[row, : counts[row]].float().numpy(), parts, bits)
        held = [book.astype(np.float32) for book in books]
        pieces = np.split(keys[group].float().numpy(), parts, axis=1)
        back = [book[oracle.nearest_of(p, book)] for p, book in zip(pieces, held, strict=True)]
        off = np.abs(found[group] - np.concatenate(back, axis=1)).max(1)
        # In half precision a piece between two centroids may get the other one.
        assert (off < NEAR[dtype]).mean() >= (1 if dtype == torch.float32 else 0.5)
    sizes = [min(2**bits, n) for n in (70, 1, 0, 33)]
    assert column.row_bytes.tolist() == [n * 12 * keys.element_size() for n in sizes]
    assert column.entry_bytes == -(-parts * bits // 8) == column.codes.shape[-1]
    assert column.able.tolist() == [n == 2**bits for n in sizes]
    monkeypatch.setattr(clusters, "_AT_ONCE", 100)
    small = ByCodes.of(keys, owner, every, counts, parts, bits)
    torch.testing.assert_close(small.read(owner), column.read(owner), rtol=1e-3, atol=1e-3)


def test_few_keys_come_back_as_they_were():
    keys = drawn(7, 2, 16, 8)
    column = ByCodes.of(keys, torch.tensor([0, 1]), keys, torch.tensor([16, 16]), 4, 4)
    assert torch.equal(column.read(torch.tensor([0, 1])), keys)
    with pytest.raises(ValueError, match=r"cache_parts=3 .* keys of 8 numbers .* 1, 2, 4, 8\.$"):
        ByCodes.of(keys, torch.tensor([0, 1]), keys, torch.tensor([16, 16]), 3, 4)


def test_mass_is_the_mean_attention_of_what_each_query_sees():
    """Two tokens of two query heads each, of which the first does not see the second's entry."""
    query, keys = drawn(1, 3, 4, 8), drawn(2, 3, 9, 8)
    places = torch.arange(9).repeat(3, 1)
    places[1, 4] = -1
    found = masses(query, keys, places, torch.tensor([7]), 2, 0.4)
    wanted = np.zeros((3, 9))
    for s in range(3):
        for row in range(4):
            logits = keys[s].double().numpy() @ query[s, row].double().numpy() * 0.4
            sees = (places[s].numpy() >= 0) & (places[s].numpy() <= 7 + row % 2)
            own = np.where(sees, np.exp(logits), 0)
            wanted[s] += own / own.sum() / 4
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.62, 0.95, 1.0])
def test_the_fewest_entries_reach_the_share(share):
    """No smaller number of entries would do, and those that are here come first."""
    found = drawn(3, 4, 30).double().softmax(-1)
    found[:, 20:] = 0  # where there is no entry
    found /= found.sum(-1, keepdim=True)
    here = torch.zeros(4, 30, dtype=torch.bool)
    here[1:, [3, 8]] = True
    taken = fewest(found, here, share)
    for mass, own, read in zip(found, here, taken, strict=True):
        assert not (own & read).any()
        assert not read[20:].any()
        others = mass[~own].sort(descending=True).values
        reached = [float(mass[own].sum() + others[:n].sum()) for n in range(len(others) + 1)]
        least = next(n for n, one in enumerate(reached) if one >= share - 1e-12)
        assert int(read.sum()) == least
        assert mass[read].min() >= mass[~read & ~own].max() if least else True
