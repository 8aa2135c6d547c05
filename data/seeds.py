"""The seed of everything random: one per purpose, so that nothing depends on the order in which others were drawn."""

from hashlib import blake2b


def derive_seed(seed: int, *parts: int | str) -> int:
    """The 63-bit seed of one purpose, such as `derive_seed(seed, "dropout", step, lane)`.

    Every random number of a run comes from a generator seeded by this function, so none depends on the
    order in which others were drawn.
    """
    path: list[int | str] = [int(seed)]
    for part in parts:
        # A numpy integer has another repr than the same Python integer.
        path.append(part if isinstance(part, str) else int(part))

    digest = blake2b(repr(tuple(path)).encode(), digest_size=8).digest()
    # 63 bits, because some generators take signed 64-bit seeds.
    return int.from_bytes(digest, "big") >> 1
