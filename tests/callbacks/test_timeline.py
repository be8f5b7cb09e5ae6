"""How long a run still takes, with a clock that the test turns."""

import pytest
import torch

from callbacks.timeline import Stage, Timeline, machine_pace


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _run(clock: Clock, timeline: Timeline, stage: Stage, until: int, seconds_per_step: float) -> list[float]:
    """Ten steps at a time; the time that is left after each."""
    left = []
    for done in range(stage.done + 10, until + 1, 10):
        clock.now += 10 * seconds_per_step
        timeline.advance(stage, done)
        left.append(timeline.seconds_left())
    return left


def test_the_eta_does_not_jump_when_warm_up_ends() -> None:
    """Steps without updates take a fiftieth: the ETA counts updates from the start, also those of the meta-test."""
    clock = Clock()
    timeline = Timeline(clock)
    training, test = Stage("training", 1000, 0.1, warmup=200), Stage("test", 500, 0.04)
    timeline.add(training)
    timeline.add(test)
    left = _run(clock, timeline, training, 200, 0.002)
    left += _run(clock, timeline, training, 1000, 0.1)
    left += _run(clock, timeline, test, 500, 0.04)
    truth = [0.0] * len(left)
    for index in range(len(left)):  # what is left in fact: 80 s and 20 s
        done = 10 * (index + 1)
        truth[index] = max(min(800, 1000 - done), 0) * 0.1 + min(500, 1500 - done) * 0.04 + max(200 - done, 0) * 0.002
    assert all(own == pytest.approx(true, rel=0.05, abs=0.5) for own, true in zip(left, truth, strict=True))
    assert left[-1] == 0.0 and timeline.share() == 1.0


@pytest.mark.parametrize("machine", [0.3, 1.0, 4.0])
def test_one_stage_tells_how_fast_the_machine_is_in_the_others(machine: float) -> None:
    clock = Clock()
    timeline = Timeline(clock)
    training, test = Stage("training", 100, 0.1), Stage("test", 100, 0.04, warmup=10)
    timeline.add(training)
    timeline.add(test)
    left = _run(clock, timeline, training, 100, 0.1 * machine)
    assert left[-1] == pytest.approx(machine * 0.04 * 91)


def test_what_another_process_does_counts_where_it_takes_longer() -> None:
    clock = Clock()
    timeline = Timeline(clock)
    training, other = Stage("training", 100, 0.1), Stage("others", 300, 0.1, is_beside=True)
    timeline.add(training)
    timeline.add(other)
    for done in range(10, 101, 10):
        clock.now += 1.0
        timeline.advance(other, done)
        timeline.advance(training, done)
    assert timeline.seconds_left() == pytest.approx(20.0)  # training is over
    assert timeline.share() == pytest.approx(1 / 3)


def test_the_time_of_a_meta_test_in_between_is_not_that_of_training() -> None:
    clock = Clock()
    timeline = Timeline(clock)
    training, test = Stage("training", 100, 0.1), Stage("test", 100, 1.0)
    timeline.add(training)
    timeline.add(test)
    _run(clock, timeline, training, 50, 0.1)
    _run(clock, timeline, test, 100, 1.0)
    assert _run(clock, timeline, training, 60, 0.1) == pytest.approx([4.0])


def test_the_share_never_falls() -> None:
    clock = Clock()
    timeline = Timeline(clock)
    training = Stage("training", 100, 0.1)
    timeline.add(training)
    _run(clock, timeline, training, 50, 0.1)
    before = timeline.share()
    _run(clock, timeline, training, 60, 10.0)  # suddenly slow
    assert timeline.share() == before == pytest.approx(0.5) and timeline.seconds_left() > 100


def test_the_pace_of_the_machine_is_a_time_and_draws_no_random_number() -> None:
    before = torch.get_rng_state()
    machine_pace.cache_clear()
    assert 0.01 < machine_pace() < 1000
    assert torch.equal(torch.get_rng_state(), before)
