"""The generator of the Rust code's masks in Python: ChaCha with 8 rounds, by coordinates.

D. J. Bernstein, "ChaCha, a variant of Salsa20", 2008; word order of the Rust crate rand_chacha 0.9: blocks with a 64-bit
counter in words 12 and 13 from 0 on, nonce 0, a number of 64 bits from two words, the lower half first.

    python tests/reference/chacha.py    # compares two numbers with those that the Rust tests hold fixed
"""

import struct

# The purposes of crates/ssl-nn/src/rng.rs that the references need.
INIT, MASK = 1, 10


class Rng:
    """The generator at the coordinates `(seed, purpose, epoch, sample, view)`."""

    def __init__(self, seed: int, purpose: int, epoch: int, sample: int, view: int):
        key = struct.pack("<QQQII", seed, epoch, sample, view, purpose)
        self.key = struct.unpack("<8I", key)
        self.counter, self.words = 0, []

    def next_u32(self) -> int:
        if not self.words:
            self.words = block(self.key, self.counter)
            self.counter += 1
        return self.words.pop(0)

    def next_u64(self) -> int:
        low = self.next_u32()
        return low | self.next_u32() << 32

    def below(self, n: int) -> int:
        """A number of `0..n`: the upper half of a product."""
        return self.next_u64() * n >> 64

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * (self.next_u64() >> 11) / 2**53

    def permutation(self, n: int) -> list:
        """Fisher and Yates from the end."""
        order = list(range(n))
        for last in range(n - 1, 0, -1):
            other = self.below(last + 1)
            order[last], order[other] = order[other], order[last]
        return order


def masks(step: int, image: int, view: int = 0, seed: int = 0) -> Rng:
    """The generator of the masks of a view of an image in a step."""
    return Rng(seed, MASK, step, image, view)


def block(key: tuple, counter: int) -> list:
    """The 16 words of one block."""
    start = [*struct.unpack("<4I", b"expand 32-byte k"), *key, counter % 2**32, counter >> 32, 0, 0]
    x = list(start)
    columns = [(i, i + 4, i + 8, i + 12) for i in range(4)]
    diagonals = [(i, (i + 1) % 4 + 4, (i + 2) % 4 + 8, (i + 3) % 4 + 12) for i in range(4)]
    for quarters in [columns, diagonals] * 4:
        for a, b, c, d in quarters:
            for to, by, turned, bits in [(a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)]:
                x[to] = (x[to] + x[by]) % 2**32
                word = x[turned] ^ x[to]
                x[turned] = (word << bits | word >> (32 - bits)) % 2**32
    return [(a + b) % 2**32 for a, b in zip(x, start)]


if __name__ == "__main__":
    rng = Rng(2026, INIT, 1, 2, 3)
    assert [rng.next_u32(), rng.next_u32()] == [557759452, 3777138513]
