"""How long a run still takes: its stages, what a step of each costs, and how fast this machine is."""

import functools
import time
from collections.abc import Callable

import torch

_WARMUP_SHARE = 0.1  # of the time of a step with an update: before updates begin, environments alone step
_PROBE_SECONDS = 2.6e-3  # of one repetition in `machine_pace`, on the machine that `estimated_seconds` was fitted on
_HALF_LIFE = 30.0  # seconds after which a measured speed has half of its weight


class Stage:
    """A part of a run, in env steps.

    Args:
        name: shown to the user.
        total: env steps.
        seconds_per_step: expected cost of a step with an update.
        warmup: steps before updates begin.
        is_beside: whether another process does it at the same time.
    """

    def __init__(self, name: str, total: int, seconds_per_step: float, warmup: int = 0, is_beside: bool = False) -> None:
        self.name, self.total, self.is_beside, self.done = name, total, is_beside, 0
        self._cost, self._warmup = seconds_per_step, warmup
        self.spent = self.earned = 0.0  # measured seconds, and expected ones of the same steps, lately
        self._last: tuple[float, int] | None = None
        self._is_first = True

    def work(self, steps: int) -> float:
        """Expected seconds of the first `steps` steps."""
        warmup = min(steps, self._warmup)
        return self._cost * (_WARMUP_SHARE * warmup + steps - warmup)

    @property
    def work_left(self) -> float:
        """Expected seconds of what is not done."""
        return max(self.work(self.total) - self.work(self.done), 0.0)

    def advance(self, done: int, now: float) -> None:
        """Take note of the steps so far. Speed is measured from the second note after the warm-up on: the first may compile."""
        if self._last is not None and self._last[1] >= min(self._warmup, self.total) and done > self._last[1]:
            seconds = now - self._last[0]
            if not self._is_first:
                forget = 0.5 ** (seconds / _HALF_LIFE)
                self.spent = forget * self.spent + seconds
                self.earned = forget * self.earned + self.work(done) - self.work(self._last[1])
            self._is_first = False
        self.done, self._last = done, (now, done)

    def pause(self) -> None:
        """The time until the next note belongs to another stage."""
        self._last = None


class Timeline:
    """The stages of a run, one after the other, and those that another process does beside them.

    Args:
        clock: seconds now.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._start, self._share = clock, clock(), 0.0
        self.stages: list[Stage] = []
        self.active: Stage | None = None

    def add(self, stage: Stage) -> None:
        """Announce a stage, as early as it is known."""
        self.stages.append(stage)

    def advance(self, stage: Stage, done: int) -> None:
        """Take note that a stage has done so many env steps."""
        if not stage.is_beside and stage is not self.active:
            if self.active is not None:
                self.active.pause()
            self.active = stage
        stage.advance(done, self._clock())

    @property
    def elapsed(self) -> float:
        """Seconds since the timeline was made."""
        return self._clock() - self._start

    def seconds_left(self) -> float:
        """Expected seconds to the end of all stages: measured speeds where there are some, else the speed of the other stages."""
        spent, earned = (sum(getattr(stage, name) for stage in self.stages) for name in ("spent", "earned"))
        pace = spent / earned if earned else 1.0
        left = {True: 0.0, False: 0.0}
        for stage in self.stages:
            left[stage.is_beside] += stage.work_left * (stage.spent / stage.earned if stage.earned else pace)
        return max(left.values())

    def share(self) -> float:
        """The part of the time that is over, between 0 and 1; it never falls."""
        left = self.seconds_left()
        self._share = max(self._share, self.elapsed / (self.elapsed + left) if self.elapsed + left > 0 else 0.0)
        return self._share if left else 1.0


@functools.cache
def machine_pace() -> float:
    """How many times slower this machine computes now than the one of `estimated_seconds`, by operations of an update's size.

    It takes a tenth of a second, and makes an ETA before the first update sensible. Draws no random number.
    """
    x = torch.linspace(-1, 1, 6 * 160 * 64).view(6, 160, 64)
    weight = torch.linspace(-1, 1, 6 * 64 * 64).view(6, 64, 64).requires_grad_()
    num_repetitions = 12
    for repetition in range(num_repetitions):
        if repetition == 2:  # the first ones allocate
            start = time.perf_counter()
        y = x
        for _ in range(4):
            y = torch.tanh(0.1 * torch.bmm(y, weight) + x)
        torch.autograd.grad(y.sum(), weight)
    return (time.perf_counter() - start) / (num_repetitions - 2) / _PROBE_SECONDS
