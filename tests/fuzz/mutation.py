"""Damage as files meet it, and as somebody who means harm would make it."""

from __future__ import annotations

import random as randoms
from collections.abc import Sequence

TELLING = [
    b"",
    b"\0",
    b"\xff" * 4,
    b"\xff\xff\xff\x7f",
    b"\0" * 64,
    b"<html>",
    b"9" * 300,
    b"\n",
    b".",
    b"(",
    b"\x85" * 50,
]


def damaged(content: bytes, random: randoms.Random, most: int = 4) -> bytes:
    """`content` after one to `most` accidents: flipped bits, cuts, repeats, zeros, moved or inserted pieces."""
    changed = bytearray(content)
    for _ in range(random.randint(1, most)):
        size = len(changed)
        start = random.randrange(size + 1)
        length = min(size - start, int(2 ** random.uniform(0, 12)))
        piece = bytes(changed[start : start + length])
        accident = random.randrange(7)
        if accident == 0 and size:
            changed[start % size] ^= 1 << random.randrange(8)
        elif accident == 1:
            del changed[start:]
        elif accident == 2:
            del changed[start : start + length]
        elif accident == 3:
            changed[start:start] = piece * random.randint(1, 3)
        elif accident == 4:
            changed[start : start + length] = bytes(length)
        elif accident == 5:
            changed[start:start] = random.choice(TELLING)
        else:
            to = random.randrange(size + 1)
            changed[to : to + length] = piece
    return bytes(changed)


def one_of(random: randoms.Random, *choices: Sequence[bytes]) -> bytes:
    """A piece out of one of several lists, each list as likely as the others."""
    return random.choice(random.choice(choices))
