"""Random numbers that belong to a sample: the same in any batch, order, device or worker.

A number is a hash of (seed, epoch, sample id, tag, position), never the next state of a generator,
so nothing has to be stored, seeded per worker or replayed to resume a run. Only integer arithmetic
and exact float steps are used, so CPU and GPU agree bit for bit.

Keys are mixed in 64 bits with the SplitMix64 finaliser (Steele, Lea and Flood, OOPSLA 2014); the
voxel-sized streams are 32-bit multiply-and-xorshift hashes, four times cheaper on a CPU.
"""

from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from math import prod

import torch

_GOLDEN = -0x61C8864680B583EB  # 2**64 / golden ratio, as signed int64
_MULTIPLIERS_64 = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)  # of the SplitMix64 finaliser
_MULTIPLIER_32 = 0x2C1B3C6D  # odd, with well spread bits


@dataclass(frozen=True)
class Draws:
    """One random stream per sample, addressed by tag; equal keys give equal numbers.

    keys: int64 [N], on the device where the numbers are wanted.
    """

    keys: torch.Tensor

    @classmethod
    def of(cls, seed: int, ids: torch.Tensor, epoch: int) -> "Draws":
        """Streams of the samples `ids` (int64 [N]) in `epoch`; seed and epoch must fit int64."""
        keys = torch.zeros_like(ids, dtype=torch.int64)
        for word in (seed, epoch, ids):
            keys = _mix64(keys + word + _GOLDEN)
        return cls(keys)

    def select(self, index: torch.Tensor) -> "Draws":
        """The streams of the samples at `index` (int64 [M])."""
        return Draws(self.keys.index_select(0, index))

    def bits(self, tag: int | str, shape: tuple[int, ...]) -> torch.Tensor:
        """int32 [N, *shape]: all 32 bits uniform and independent."""
        keys = _mix64(self.keys + _tag_word(tag)).view(torch.int32).view(-1, 2)
        words = _counters(prod(shape), self.keys.device) ^ keys[:, :1]
        # The sample's second half-key multiplies, so that no two streams are shifts of each other.
        words.mul_(keys[:, 1:] | 1)
        scratch = torch.empty_like(words)
        _xorshift32_(words, 15, scratch)
        words.mul_(_MULTIPLIER_32)
        _xorshift32_(words, 16, scratch)
        return words.view(-1, *shape)

    def uniform(self, tag: int | str, shape: tuple[int, ...]) -> torch.Tensor:
        """float32 [N, *shape], uniform in [0, 1) in steps of 2**-24 (so each step is exact)."""
        return self.bits(tag, shape).bitwise_right_shift_(8).mul(2.0**-24).add_(0.5)

    def integers(self, tag: int | str, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        """int64 [N, *shape], uniform in low..high inclusive.

        low, high: int64, broadcastable together to [N or 1, *shape]; spans below 2**24.
        """
        span = high - low + 1
        return low + (self.uniform(tag, tuple(span.shape[1:])) * span).long()


def _mix64(words: torch.Tensor) -> torch.Tensor:
    """The SplitMix64 finaliser on int64 words: a bijection in which each bit affects all."""
    for shift, multiplier in zip((30, 27), _MULTIPLIERS_64, strict=True):
        words = (words ^ _logical_shift64(words, shift)) * multiplier
    return words ^ _logical_shift64(words, 31)


def _logical_shift64(words: torch.Tensor, shift: int) -> torch.Tensor:
    # torch shifts signed integers arithmetically: the mask drops the copies of the sign bit.
    return (words >> shift) & ((1 << (64 - shift)) - 1)


def _xorshift32_(words: torch.Tensor, shift: int, scratch: torch.Tensor) -> None:
    """In place, words ^= words >>> shift, on int32; scratch: overwritten, as large as words."""
    torch.bitwise_right_shift(words, shift, out=scratch)
    words.bitwise_xor_(scratch.bitwise_and_((1 << (32 - shift)) - 1))


@lru_cache(maxsize=256)
def _tag_word(tag: int | str) -> int:
    digest = blake2b(str(tag).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


@lru_cache(maxsize=8)
def _counters(count: int, device: torch.device) -> torch.Tensor:
    """int32 [1, count]: 0..count-1 scattered by a bijection, shared by all samples and tags."""
    words = torch.arange(count, dtype=torch.int32, device=device)
    scratch = torch.empty_like(words)
    for shift in (16, 15):
        _xorshift32_(words, shift, scratch)
        words.mul_(_MULTIPLIER_32)
    _xorshift32_(words, 16, scratch)
    return words.unsqueeze(0)
