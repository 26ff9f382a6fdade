"""Results made ahead of time by one background thread."""

import queue
import threading
import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Yields produce(start), produce(start + 1), ... with up to `depth` results made ahead.

    An exception in `produce` ends the work and is raised by the `get` that would have returned its
    result. The thread holds no reference to this object, so dropping it stops the thread as
    `close` does; so does the end of the interpreter.
    """

    def __init__(self, produce: Callable[[int], T], start: int, depth: int) -> None:
        self._results: queue.SimpleQueue[T | _Failure] = queue.SimpleQueue()
        self._free = threading.Semaphore(depth)
        stop = threading.Event()
        thread = threading.Thread(
            target=_work,
            args=(produce, start, self._results, self._free, stop),
            name="afterglow-prefetch",
            daemon=True,
        )
        thread.start()
        self.close = weakref.finalize(self, _stop, thread, self._free, stop)
        """Stop and join the thread; may be called any number of times."""

    def get(self) -> T:
        """The next result; waits for it."""
        result = self._results.get()
        self._free.release()
        if isinstance(result, _Failure):
            raise result.error
        return result


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


def _work(
    produce: Callable[[int], T],
    number: int,
    results: "queue.SimpleQueue[T | _Failure]",
    free: threading.Semaphore,
    stop: threading.Event,
) -> None:
    while True:
        free.acquire()
        if stop.is_set():
            return
        try:
            results.put(produce(number))
        except BaseException as error:  # noqa: BLE001 - it is raised again in the consumer
            results.put(_Failure(error))
            return
        number += 1


def _stop(thread: threading.Thread, free: threading.Semaphore, stop: threading.Event) -> None:
    stop.set()
    free.release()
    if thread is not threading.current_thread():
        thread.join()
