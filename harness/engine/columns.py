"""The keys, or the values, of groups of entries: in few bits, coded, as they are, or on the host.

Must not know caches, cells or why an entry is stored so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.engine import clusters
from harness.engine.quantize import (
    Coded,
    by_channel,
    by_token,
    from_channels,
    from_tokens,
    pack,
    unpack,
)
from harness.settings.caches import uncut
from methods.kernels import shared


class Column(ABC):
    """Vectors [P, n, d] of P groups; each group belongs to one of R rows, such as a KV head.

    Where `rows` is an argument, it tells the row of each group, int64 [P] on the device; `present`
    bool [P, n] tells which vectors there are.
    """

    @abstractmethod
    def read(self, rows: Tensor) -> Tensor:
        """Vectors [P, n, d], in the dtype they came in."""

    @abstractmethod
    def extended(self, vectors: Tensor, present: Tensor, rows: Tensor) -> Column:
        """With later groups behind these; rows: of the later groups."""

    @abstractmethod
    def select(self, groups: Tensor, rows: Tensor) -> Column:
        """Only these groups of these rows, both int64 on the host."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that its tensors take on the device."""

    @property
    @abstractmethod
    def entry_bytes(self) -> int:
        """Bytes of one vector on the device."""

    @property
    def group_bytes(self) -> int:
        """Bytes of one group on the device, beside its vectors."""
        return 0

    @property
    def able(self) -> Tensor | None:
        """Which rows later groups can belong to, bool [R] on the host; None: all."""
        return None

    @property
    def row_bytes(self) -> Tensor | None:
        """Bytes of each row on the device, beside its groups, int64 [R] on the host."""
        return None


@dataclass(frozen=True, eq=False)
class InFewBits(Column):
    """Vectors on grids of so many bits a number; dim, dtype: of what comes back."""

    coded: Coded
    bits: int
    dim: int
    dtype: torch.dtype

    @abstractmethod
    def coding(self, vectors: Tensor, present: Tensor) -> Coded:
        """Later groups, whose grids are their own."""

    def extended(self, vectors: Tensor, present: Tensor, rows: Tensor) -> InFewBits:
        """Later groups have grids of their own."""
        pairs = zip(self.coded, self.coding(vectors, present), strict=True)
        return replace(self, coded=Coded(*map(torch.cat, pairs)))

    def select(self, groups: Tensor, rows: Tensor) -> InFewBits:
        """Only these groups."""
        own = shared(groups, self.coded.codes.device)
        return replace(self, coded=Coded(*(each[own] for each in self.coded)))

    @property
    def nbytes(self) -> int:
        """Of codes, steps and zeros."""
        return self.coded.nbytes

    @property
    def _grid_bytes(self) -> int:
        """Of the steps and zeros that belong together."""
        return 2 * self.coded.step.shape[-1] * self.coded.step.element_size()


@dataclass(frozen=True, eq=False)
class ByChannel(InFewBits):
    """Keys with one grid for each channel of a group."""

    @classmethod
    def of(cls, keys: Tensor, present: Tensor, bits: int) -> ByChannel:
        """Code keys [P, n, d]; each group has an entry."""
        return cls(by_channel(keys, present, bits), bits, keys.shape[-1], keys.dtype)

    def coding(self, vectors: Tensor, present: Tensor) -> Coded:
        """As the first ones."""
        return by_channel(vectors, present, self.bits)

    def read(self, rows: Tensor) -> Tensor:
        """As they come back."""
        return from_channels(self.coded, self.bits, self.dim, self.dtype)

    @property
    def entry_bytes(self) -> int:
        """Of its codes."""
        return self.coded.codes.shape[-1]

    @property
    def group_bytes(self) -> int:
        """Of its steps and zeros."""
        return self._grid_bytes


@dataclass(frozen=True, eq=False)
class ByToken(InFewBits):
    """Values with one grid for every `group` channels of an entry."""

    group: int

    @classmethod
    def of(cls, values: Tensor, group: int, bits: int) -> ByToken:
        """Code values [P, n, dv]."""
        return cls(by_token(values, group, bits), bits, values.shape[-1], values.dtype, group)

    def coding(self, vectors: Tensor, present: Tensor) -> Coded:
        """As the first ones."""
        return by_token(vectors, self.group, self.bits)

    def read(self, rows: Tensor) -> Tensor:
        """As they come back."""
        return from_tokens(self.coded, self.bits, self.dim, self.group, self.dtype)

    @property
    def entry_bytes(self) -> int:
        """Of its codes, steps and zeros."""
        return self.coded.codes.shape[-1] + self._grid_bytes


@dataclass(frozen=True, eq=False)
class ByCodes(Column):
    """Keys as codes of their pieces; each row has centroids of its own.

    codes uint8 [P, n, ceil(parts * bits / 8)]; books [R, parts, K, sub] in the dtype of the keys,
    of which the first sizes[r] count, int64 [R] on the host.
    """

    codes: Tensor
    books: Tensor
    sizes: Tensor
    bits: int

    @classmethod
    def of(
        cls, keys: Tensor, rows: Tensor, every: Tensor, counts: Tensor, parts: int, bits: int
    ) -> ByCodes:
        """Code keys [P, n, d] by centroids of the first counts[r] of every row's keys [R, m, d].

        ValueError, one sentence, where a key cannot be cut into so many parts.
        """
        if reason := uncut(keys.shape[-1], parts):
            raise ValueError(reason)
        books = clusters.fit(every, counts, parts, bits).to(keys.dtype)
        empty = cls(keys.new_zeros(0, dtype=torch.uint8), books, counts.clamp_max(2**bits), bits)
        return replace(empty, codes=empty._coded(keys, rows))

    def _coded(self, keys: Tensor, rows: Tensor) -> Tensor:
        sizes = shared(self.sizes, keys.device)
        return pack(clusters.encode(keys, self.books, sizes, rows), self.bits)

    def read(self, rows: Tensor) -> Tensor:
        """The centroids that stand for them."""
        codes = unpack(self.codes, self.bits, self.books.shape[1])
        return clusters.decode(codes, self.books, rows)

    def extended(self, vectors: Tensor, present: Tensor, rows: Tensor) -> ByCodes:
        """Later entries get the codes of centroids that are there."""
        return replace(self, codes=torch.cat([self.codes, self._coded(vectors, rows)]))

    def select(self, groups: Tensor, rows: Tensor) -> ByCodes:
        """Only these groups, and the centroids of these rows."""
        device = self.codes.device
        books, sizes = self.books[shared(rows, device)], self.sizes[rows]
        return replace(self, codes=self.codes[shared(groups, device)], books=books, sizes=sizes)

    @property
    def nbytes(self) -> int:
        """Of codes and centroids."""
        return self.codes.nbytes + self.books.nbytes

    @property
    def entry_bytes(self) -> int:
        """Of its codes."""
        return self.codes.shape[-1]

    @property
    def able(self) -> Tensor:
        """Those that have all centroids: few would make all later keys alike."""
        return self.sizes == 2**self.bits

    @property
    def row_bytes(self) -> Tensor:
        """Of its centroids."""
        parts, _, sub = self.books.shape[1:]
        return self.sizes * (parts * sub * self.books.element_size())


@dataclass(frozen=True, eq=False)
class Whole(Column):
    """Vectors as they are."""

    vectors: Tensor

    def read(self, rows: Tensor) -> Tensor:
        """As they are."""
        return self.vectors

    def extended(self, vectors: Tensor, present: Tensor, rows: Tensor) -> Whole:
        """As they come."""
        return Whole(torch.cat([self.vectors, vectors]))

    def select(self, groups: Tensor, rows: Tensor) -> Whole:
        """Only these groups."""
        return Whole(self.vectors[shared(groups, self.vectors.device)])

    @property
    def nbytes(self) -> int:
        """Of all of them."""
        return self.vectors.nbytes

    @property
    def entry_bytes(self) -> int:
        """Of one."""
        return self.vectors.shape[-1] * self.vectors.element_size()


@dataclass(frozen=True, eq=False)
class OnHost(Column):
    """Vectors on the host; `fetch` brings some of them to the device in one copy."""

    vectors: Tensor
    device: torch.device

    @classmethod
    def of(cls, vectors: Tensor) -> OnHost:
        """Send vectors to the host."""
        return cls(vectors.cpu(), vectors.device)

    def read(self, rows: Tensor) -> Tensor:
        """All of them, on the device."""
        return self.vectors.to(self.device)

    def fetch(self, entries: Tensor) -> Tensor:
        """Vectors [k, d] of these entries, int64 [k] on the host, of all groups in a row."""
        pool, dim = self.vectors.flatten(0, 1), self.vectors.shape[-1]
        pinned = self.device.type == "cuda"
        found = torch.empty(len(entries), dim, dtype=pool.dtype, pin_memory=pinned)
        torch.index_select(pool, 0, entries, out=found)
        return found.to(self.device, non_blocking=pinned)

    def extended(self, vectors: Tensor, present: Tensor, rows: Tensor) -> OnHost:
        """Later ones go to the host as well."""
        return replace(self, vectors=torch.cat([self.vectors, vectors.cpu()]))

    def select(self, groups: Tensor, rows: Tensor) -> OnHost:
        """Only these groups."""
        return replace(self, vectors=self.vectors[groups])

    @property
    def nbytes(self) -> int:
        """None."""
        return 0

    @property
    def entry_bytes(self) -> int:
        """None."""
        return 0

    @property
    def host_bytes(self) -> int:
        """Of one vector, on the host."""
        return self.vectors.shape[-1] * self.vectors.element_size()
