"""Files as they should not be: seeded damage to real image files, alike on every machine."""

import random
import struct
from collections.abc import Callable, Sequence

EDGES = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 50_000, 2**31 - 1, 2**31, 2**32 - 1]
"""Numbers at which lengths, sizes and offsets go wrong."""


class Mutator:
    """Damages files, one to four times each. The same seed and files give the same results.

    span: at most so many bytes are replaced, cut out, repeated or moved at a time.
    """

    def __init__(self, files: Sequence[bytes], seed: int, span: int = 300) -> None:
        self.files = list(files)
        self.random = random.Random(seed)
        self.span = span
        self.ways: list[Callable[[bytearray], None]] = [
            self.flip_bits,
            self.flip_bits,
            self.replace_bytes,
            self.replace_run,
            self.write_number,
            self.write_number,
            self.cut_out,
            self.repeat,
            self.swap,
            self.cut_off,
            self.splice,
        ]

    def mutated(self) -> bytes:
        """The next damaged file."""
        data = bytearray(self.random.choice(self.files))
        for _ in range(self.random.randint(1, 4)):
            self.random.choice(self.ways)(data)
            if not data:
                break
        return bytes(data)

    def place(self, data: bytearray) -> int:
        """Somewhere in the file; one time in three in its first 64 bytes, where the header is."""
        end = min(64, len(data)) if self.random.random() < 1 / 3 else len(data)
        return self.random.randrange(end)

    def stretch(self, data: bytearray) -> slice:
        """A few bytes of the file, anywhere."""
        start = self.place(data)
        return slice(start, start + self.random.randint(1, self.span))

    def flip_bits(self, data: bytearray) -> None:
        for _ in range(self.random.randint(1, 8)):
            data[self.place(data)] ^= 1 << self.random.randrange(8)

    def replace_bytes(self, data: bytearray) -> None:
        for _ in range(self.random.randint(1, 8)):
            data[self.place(data)] = self.random.randrange(256)

    def replace_run(self, data: bytearray) -> None:
        run = self.stretch(data)
        length = len(data[run])
        byte = self.random.choice([b"\x00", b"\xff", b"\x80", None])
        data[run] = self.random.randbytes(length) if byte is None else byte * length

    def write_number(self, data: bytearray) -> None:
        """A number of 1, 2 or 4 bytes, in either order: over a length, a size, an offset."""
        order, kind = self.random.choice("<>"), self.random.choice("BHHII")
        most = 256 ** struct.calcsize(kind) - 1
        number = self.random.choice([*EDGES, len(data), self.random.randrange(most)])
        start = self.place(data)
        field = struct.pack(order + kind, min(number, most))
        data[start : start + len(field)] = field

    def cut_out(self, data: bytearray) -> None:
        del data[self.stretch(data)]

    def repeat(self, data: bytearray) -> None:
        run = self.stretch(data)
        data[run.start : run.start] = data[run] * self.random.choice([1, 1, 2, 30])

    def swap(self, data: bytearray) -> None:
        """Two stretches change places."""
        one, other = sorted((self.place(data), self.place(data)))
        length = min(self.random.randint(1, self.span), other - one)
        first, second = data[one : one + length], data[other : other + length]
        data[other : other + length] = first
        data[one : one + length] = second

    def cut_off(self, data: bytearray) -> None:
        del data[self.place(data) :]

    def splice(self, data: bytearray) -> None:
        """The rest of another file, of whatever format, instead of this one's."""
        other = self.random.choice(self.files)
        start = self.random.randrange(len(other))
        data[self.place(data) :] = other[start:]
