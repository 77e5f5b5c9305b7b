"""The few static sizes that ragged work is padded to, so that few programs are compiled."""

_RATIO = 1.25


def bucket(size: int, multiple: int = 16) -> int:
    """Returns the smallest bucket that holds `size` (0 stays 0).

    Buckets are multiples of `multiple` and grow by about a quarter: 16, 32, 48, 64, 80, 112, ...
    Padding therefore wastes at most a quarter of a large size, and a range of lengths from 1 to N
    meets about log(N) / log(1.25) programs.
    """
    edge = 0
    while edge < size:
        grown = -(-int(edge * _RATIO) // multiple) * multiple
        edge = max(edge + multiple, grown)
    return edge
