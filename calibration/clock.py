"""Time as the measurement sees it, so that a simulated GPU can run on simulated time."""

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
