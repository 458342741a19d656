"""Firing rules compared on the same seeded arrivals, in simulated time: no broker, no model, no noise.

``python -m bench.batching_simulation`` prints the table. The device takes ``fixed_s + row_s * bucket`` for a batch, one
batch at a time; a row's wait is from its arrival to the end of its batch, or until it is answered EXPIRED, which
counts as a missed deadline.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from app.batcher import MicroBatcher

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

WINDOW_S = 0.005
MAX_BATCH_SIZE = 64
BUCKETS = (1, 2, 4, 8, 16, 32, 64)
DEADLINE_S = 0.1


@dataclass(frozen=True, slots=True)
class Device:
    """Seconds for a batch: a fixed part and one for each padded row."""

    fixed_s: float
    row_s: float

    def run_s(self, rows: int) -> float:
        """Of ``rows``, padded to a power of two."""
        return self.fixed_s + self.row_s * 2 ** max(rows - 1, 0).bit_length()

    @property
    def capacity(self) -> float:
        """Rows a second in full batches."""
        return MAX_BATCH_SIZE / self.run_s(MAX_BATCH_SIZE)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a rule made of a trace."""

    mean_wait_s: float
    p99_wait_s: float
    mean_batch: float
    missed_share: float


def steady(rate: float, count: int, _seed: int) -> NDArray[np.float64]:
    """Equal gaps."""
    return np.arange(count) / rate


def poisson(rate: float, count: int, seed: int) -> NDArray[np.float64]:
    """Exponential gaps."""
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count))


def bursts(rate: float, count: int, seed: int) -> NDArray[np.float64]:
    """Bursts of about 32 rows within a millisecond each, exponential gaps between them."""
    rng = np.random.default_rng(seed)
    sizes = rng.poisson(31, count // 32) + 1
    starts = np.cumsum(rng.exponential(32 / rate, len(sizes)))
    return np.sort(np.concatenate([s + rng.uniform(0, 0.001, n) for s, n in zip(starts, sizes, strict=True)]))


def run_learned(arrivals: NDArray[np.float64], device: Device) -> Outcome:
    """Our rule, driven as the pipeline drives it (without a stage before the device)."""
    batcher = MicroBatcher(MAX_BATCH_SIZE, WINDOW_S)
    for bucket in BUCKETS:
        batcher.run.learn(bucket, device.run_s(bucket))  # as the warm-up has measured it
    ends, sizes, free_s, now_s, i = np.empty(len(arrivals)), [], 0.0, 0.0, 0
    expired, done = np.zeros(len(arrivals), bool), 0
    while done < len(arrivals):
        while i < len(arrivals) and arrivals[i] <= now_s:
            at_s = float(arrivals[i])
            batcher.add(i, rows=1, now_s=at_s, deadlines_s=np.array([at_s + DEADLINE_S]), device_free_s=free_s)
            i += 1
        if now_s >= free_s and batcher.fire_reason(now_s=now_s, device_free_s=free_s) is not None:
            taken = batcher.take(now_s=now_s, device_free_s=free_s)
            first, done = done, done + len(taken.slices)
            is_late = arrivals[first:done] + DEADLINE_S <= taken.in_time_s
            rows = int(np.count_nonzero(~is_late))
            if rows:
                free_s = now_s + device.run_s(rows)
                batcher.run.learn(rows, free_s - now_s)
                sizes.append(rows)
            ends[first:done] = np.where(is_late, now_s, free_s)
            expired[first:done] = is_late
            continue
        arrival_s = float(arrivals[i]) if i < len(arrivals) else math.inf
        wake_s = batcher.wake_at_s(now_s=now_s, device_free_s=free_s)
        now_s = max(min(arrival_s, max(wake_s, free_s)), np.nextafter(now_s, math.inf))
    return _outcome(arrivals, ends, sizes, expired)


def run_when_idle(arrivals: NDArray[np.float64], device: Device) -> Outcome:
    """Fire whatever waits as soon as the device is idle."""
    return _run_by(arrivals, device, lambda first_s, _full_s: first_s)


def run_window(arrivals: NDArray[np.float64], device: Device) -> Outcome:
    """Fire when full or when the window, which opens with the first row, is over (KServe, Ray, TorchServe)."""
    return _run_by(arrivals, device, lambda first_s, full_s: min(first_s + WINDOW_S, full_s))


def run_tick(arrivals: NDArray[np.float64], device: Device) -> Outcome:
    """Fire when full or at the next tick of a clock that knows nothing of arrivals (Faust's ``take``)."""
    return _run_by(arrivals, device, lambda first_s, full_s: min(math.ceil(first_s / WINDOW_S) * WINDOW_S, full_s))


RULES: dict[str, Callable[[NDArray[np.float64], Device], Outcome]] = {
    "learned (ours)": run_learned,
    "when idle": run_when_idle,
    "fixed window": run_window,
    "tick": run_tick,
}
DEVICES = {"small model": Device(0.0005, 0.00001), "large model": Device(0.008, 0.0001)}
LOADS = {"light": 0.02, "half": 0.5, "heavy": 0.85, "overload": 1.5}
TRACES = {"steady": steady, "poisson": poisson, "bursts": bursts}


def _run_by(arrivals: NDArray[np.float64], device: Device, fire_at_s: Callable[[float, float], float]) -> Outcome:
    ends, sizes, free_s, i = np.empty(len(arrivals)), [], 0.0, 0
    while i < len(arrivals):
        last = i + MAX_BATCH_SIZE - 1
        full_s = float(arrivals[last]) if last < len(arrivals) else math.inf
        start_s = max(free_s, fire_at_s(float(arrivals[i]), full_s))
        rows = int(np.searchsorted(arrivals[i : i + MAX_BATCH_SIZE], start_s, side="right"))
        free_s = start_s + device.run_s(rows)
        ends[i : i + rows] = free_s
        sizes.append(rows)
        i += rows
    return _outcome(arrivals, ends, sizes, np.zeros(len(arrivals), bool))


def _outcome(
    arrivals: NDArray[np.float64], ends: NDArray[np.float64], sizes: list[int], expired: NDArray[np.bool_]
) -> Outcome:
    waits = ends - arrivals
    missed = expired | (waits > DEADLINE_S)
    return Outcome(float(waits.mean()), float(np.quantile(waits, 0.99)), float(np.mean(sizes)), float(missed.mean()))


def compare(*, count: int = 4000, seed: int = 1) -> dict[tuple[str, str, str], dict[str, Outcome]]:
    """Every rule on every device, load and trace."""
    table = {}
    for device_name, device in DEVICES.items():
        for load_name, load in LOADS.items():
            for trace_name, trace in TRACES.items():
                arrivals = trace(load * device.capacity, count, seed)
                table[device_name, load_name, trace_name] = {n: rule(arrivals, device) for n, rule in RULES.items()}
    return table


def main() -> None:
    """Print the comparison."""
    for (device, load, trace), outcomes in compare().items():
        print(f"\n{device}, {load} load, {trace}")
        for name, o in outcomes.items():
            print(
                f"  {name:16} mean {o.mean_wait_s * 1e3:8.2f} ms  p99 {o.p99_wait_s * 1e3:8.2f} ms  "
                f"batch {o.mean_batch:5.1f}  late {o.missed_share:6.1%}"
            )


if __name__ == "__main__":
    main()
