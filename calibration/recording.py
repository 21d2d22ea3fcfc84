"""A sensor's answers written to a file, so that a run on a real GPU can be evaluated without one.

One JSON object a line: ``call``, ``begun_s`` and ``ended_s`` of the recording clock, and its
``value`` or the ``error`` that it raised. Work is recorded as the moment and the device time of
each chunk. A last line that was cut off is ignored.
"""

import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from calibration import jsonl
from calibration.clock import REAL_CLOCK, Clock
from calibration.sensors import Identity, Reading, Sensor
from calibration.window import Work
from energymodel.errors import InputError, WorkError

Value = TypeVar("Value")

CHUNK = "chunk"
# A read always takes some time, else a loop that polls would stop simulated time.
MIN_READ_S = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One recorded call: when it began and ended, and what it gave."""

    begun_s: float
    ended_s: float
    value: Any
    error: str | None = None


class RecordingSensor:
    """Passes every call on to a sensor and writes down what it answered, errors included."""

    def __init__(self, sensor: Sensor, path: Path, clock: Clock = REAL_CLOCK) -> None:
        jsonl.repair(path)
        self._sensor, self._path, self._clock = sensor, path, clock

    def identity(self) -> Identity:
        """As of the sensor."""
        return self._ask("identity", self._sensor.identity, asdict)

    def energy_j(self) -> float:
        """As of the sensor."""
        return self._ask("energy_j", self._sensor.energy_j)

    def reading(self, time_s: float) -> Reading:
        """As of the sensor."""
        return self._ask("reading", lambda: self._sensor.reading(time_s), asdict)

    def memory_power_w(self) -> float | None:
        """As of the sensor."""
        return self._ask("memory_power_w", self._sensor.memory_power_w)

    def other_processes(self) -> tuple[int, ...]:
        """As of the sensor."""
        return self._ask("other_processes", self._sensor.other_processes)

    def faults(self) -> int:
        """As of the sensor."""
        return self._ask("faults", self._sensor.faults)

    def work(self, work: Work) -> Work:
        """The same work, of which each chunk is written down as well."""

        def submit() -> Callable[[], float]:
            wait = work.submit()
            return lambda: self._ask(CHUNK, wait, lambda s: [s, work.calls_per_chunk])

        return Work(submit=submit, calls_per_chunk=work.calls_per_chunk)

    def _ask(
        self, call: str, ask: Callable[[], Value], to_json: Callable[[Any], Any] = lambda v: v
    ) -> Value:
        begun_s = self._clock.now()
        try:
            value = ask()
        except Exception as error:
            self._write(call, begun_s, error=str(error))
            raise
        self._write(call, begun_s, value=to_json(value))
        return value

    def _write(self, call: str, begun_s: float, **outcome: Any) -> None:
        times = {"begun_s": begun_s, "ended_s": self._clock.now()}
        jsonl.append(self._path, {"call": call, **times, **outcome})


class ReplaySensor:
    """Answers from a recording: what happened first in it happens when this is made.

    The energy counter advances half way between the reads that saw it change; everything else is
    as it was last recorded. After the end of the recording nothing changes any more. A call that
    failed for good fails again, with the same words.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self._answers = read(path)
        self._clock = clock
        first_s = min(answers[0].begun_s for answers in self._answers.values())
        self._ahead_s = clock.now() - first_s
        energy = [a for a in self._answers.get("energy_j", ()) if a.error is None]
        self._read_s = max(median([a.ended_s - a.begun_s for a in energy] or [0.0]), MIN_READ_S)
        self._tick_s, self._tick_j = _steps(energy)

    def identity(self) -> Identity:
        """The recorded one."""
        return Identity(**self._last("identity"))

    def energy_j(self) -> float:
        """Counter at this moment of the recording; takes as long as a read usually took."""
        self._clock.sleep(0.5 * self._read_s)
        self._refuse_lost("energy_j")
        if not self._tick_s:
            raise WorkError("the recording holds no read of the energy counter")
        now_s = self._clock.now() - self._ahead_s
        value_j = self._tick_j[max(bisect_right(self._tick_s, now_s) - 1, 0)]
        self._clock.sleep(0.5 * self._read_s)
        return value_j

    def reading(self, time_s: float) -> Reading:
        """The last one before this moment of the recording."""
        return replace(Reading(**self._last("reading")), time_s=time_s)

    def memory_power_w(self) -> float | None:
        """The last one before this moment of the recording; None where none was recorded."""
        value: float | None = self._last("memory_power_w", None)
        return value

    def other_processes(self) -> tuple[int, ...]:
        """Those last seen before this moment of the recording."""
        return tuple(self._last("other_processes", ()))

    def faults(self) -> int:
        """As last counted before this moment of the recording."""
        return int(self._last("faults", 0))

    def work(self) -> Work:
        """The recorded work: each chunk is done when it was, and took as long on the device."""
        chunks = [a for a in self._answers.get(CHUNK, ()) if a.error is None]
        if not chunks:
            raise WorkError("the recording holds no work")
        ahead = iter(chunks)

        def submit() -> Callable[[], float]:
            chunk = next(ahead, None)

            def wait() -> float:
                if chunk is None:
                    raise WorkError("the recording ends before the window does")
                self._clock.sleep_until(chunk.ended_s + self._ahead_s)
                return float(chunk.value[0])

            return wait

        return Work(submit=submit, calls_per_chunk=chunks[0].value[1])

    def _last(self, call: str, default: Any = ...) -> Any:
        self._refuse_lost(call)
        answers = [a for a in self._answers.get(call, ()) if a.error is None]
        if not answers:
            if default is ...:
                raise WorkError(f"the recording holds no {call}")
            return default
        now_s = self._clock.now() - self._ahead_s
        return answers[max(bisect_right(answers, now_s, key=lambda a: a.ended_s) - 1, 0)].value

    def _refuse_lost(self, call: str) -> None:
        """Fail as the recorded sensor did, once it failed and never answered again."""
        answers = self._answers.get(call, ())
        if answers and answers[-1].error is not None:
            good_s = max((a.ended_s for a in answers if a.error is None), default=float("-inf"))
            if self._clock.now() - self._ahead_s > good_s:
                raise WorkError(str(answers[-1].error))


def read(path: Path) -> dict[str, list[Answer]]:
    """Recorded answers by call, each list in the order of their ends.

    Raises:
        InputError: the file cannot be read, is empty, or a line other than the last is broken.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {(error.strerror or '').lower()}.") from error
    answers: defaultdict[str, list[Answer]] = defaultdict(list)
    for number, line in enumerate(lines, 1):
        try:
            found = json.loads(line)
            call = found.pop("call")
            answers[call].append(Answer(**{"value": None} | found))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if number == len(lines):
                break  # the program was killed while it wrote this line
            raise InputError(f"{path}, line {number}: must be a recorded call.") from error
    if not answers:
        raise InputError(f"{path} must be a recording; it holds no call.")
    return {call: sorted(found, key=lambda a: a.ended_s) for call, found in answers.items()}


def _steps(reads: Sequence[Answer]) -> tuple[list[float], list[float]]:
    """When the energy counter advanced, and to what; first its value at the first read."""
    times_s, values_j = [], []
    for i, now in enumerate(reads):
        if i == 0:
            times_s.append(now.begun_s)
            values_j.append(float(now.value))
        elif now.value != values_j[-1]:
            # The value read is that of the middle of a read, give or take half of it.
            times_s.append(
                0.25 * sum((reads[i - 1].begun_s, reads[i - 1].ended_s, now.begun_s, now.ended_s))
            )
            values_j.append(float(now.value))
    return times_s, values_j
