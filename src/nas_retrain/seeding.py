"""What a seed decides: the generator of one network's training, or that of every network's.

A training's generator draws its initial weights, and the order and augmentation of its images. Where all networks share
it, they share its luck as well: errors of networks are then not independent, and a mean over many networks is no surer
than the few seeds allow. So by default each network has generators of its own.
"""

from __future__ import annotations

import hashlib
from typing import Literal

Seeding = Literal["nested", "shared"]
"""Whether a generator is seeded by the network class and the seed, or by the seed alone, as the benchmark's were."""


def generator_seed(seeding: Seeding, network_class: int, seed: int) -> int:
    """The seed of a training's generator, below 2^63. Under "nested" a hash, the same on every machine.

    network_class: of the network, however it is initialised, so that recipes are compared on the same draws.
    """
    if seeding == "shared":
        return seed
    digest = hashlib.sha256(f"network class {network_class}, seed {seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
