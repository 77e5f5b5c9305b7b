"""Threads that work ahead of a generator."""

import concurrent.futures
import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def threads(count: int) -> Iterator[concurrent.futures.Executor]:
    """Lends threads to a generator, which may be left half way.

    Such a generator is closed by whichever thread happens to collect it. That may be one for which
    these threads wait, so that none waits for them: what has not begun is dropped.
    """
    pool = concurrent.futures.ThreadPoolExecutor(count)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
