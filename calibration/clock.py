"""Time as the measurement sees it, so that a simulated GPU can run on simulated time."""

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from typing import Protocol

# Sleeps overshoot by up to about a millisecond; closer to the moment than this, spin.
SPIN_S = 2e-3


class Clock(Protocol):
    """Reads time, waits, and runs something beside the caller."""

    def now(self) -> float:
        """Seconds since an arbitrary origin."""

    def sleep(self, duration_s: float) -> None:
        """Wait about this long."""

    def sleep_until(self, time_s: float) -> None:
        """Wait until this moment, precisely."""

    def spawn(self, run: Callable[[], None]) -> Callable[[], None]:
        """Run beside the caller; the returned function waits for its end."""


class RealClock:
    """The host's monotonic clock and its threads."""

    def now(self) -> float:
        """Seconds of ``time.perf_counter``."""
        return time.perf_counter()

    def sleep(self, duration_s: float) -> None:
        """Wait about this long."""
        time.sleep(duration_s)

    def sleep_until(self, time_s: float) -> None:
        """Sleep, then spin through the last moments."""
        while (left := time_s - time.perf_counter()) > 0:
            time.sleep(left if left > SPIN_S else 0)

    def spawn(self, run: Callable[[], None]) -> Callable[[], None]:
        """Run in a daemon thread."""
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread.join


REAL_CLOCK = RealClock()


class VirtualClock:
    """Time that passes only in sleeps. Of the threads that share it exactly one runs at a time.

    Whoever sleeps hands over to the thread that is due first, so no lock guards the queue; a
    sleeper who is itself due first goes on at once.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._order = itertools.count()
        self._waiting: list[tuple[float, int, threading.Lock]] = []

    def now(self) -> float:
        """Seconds since the clock was made."""
        return self._now

    def sleep(self, duration_s: float) -> None:
        """Let the others run until ``duration_s`` have passed."""
        self.sleep_until(self._now + duration_s)

    def sleep_until(self, time_s: float) -> None:
        """Let the others run until ``time_s``; of two that wait for it, who asked first goes on."""
        time_s = max(time_s, self._now)
        if not self._waiting or self._waiting[0][0] > time_s:
            self._now = time_s
            return
        turn = self._queue(time_s)
        self._pass_on()
        turn.acquire()

    def spawn(self, run: Callable[[], None]) -> Callable[[], None]:
        """Run in a thread that starts at the caller's next sleep."""
        first = self._queue(self._now)
        ended = False
        joining: list[threading.Lock] = []

        def body() -> None:
            nonlocal ended
            first.acquire()
            try:
                run()
            finally:
                ended = True
                for turn in joining:
                    heapq.heappush(self._waiting, (self._now, next(self._order), turn))
                self._pass_on()

        def join() -> None:
            if not ended:
                joining.append(_held_lock())
                self._pass_on()
                joining[-1].acquire()
            thread.join()

        thread = threading.Thread(target=body, daemon=True)
        thread.start()
        return join

    def _queue(self, time_s: float) -> threading.Lock:
        """A place in the queue: a lock that is released when ``time_s`` has come."""
        turn = _held_lock()
        heapq.heappush(self._waiting, (time_s, next(self._order), turn))
        return turn

    def _pass_on(self) -> None:
        self._now, _, turn = heapq.heappop(self._waiting)
        turn.release()


def _held_lock() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock
