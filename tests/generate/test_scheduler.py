"""Rounds: jobs join and leave between them, and none becomes anything else for it."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sora_jax.generate import refine
from sora_jax.generate.scheduler import Rounds, make_all, run_jobs
from tests.generate.test_tasks import LIMITS, Averages, job, video


class Seeds:
    """A sampler that fills in the seed of each canvas plus the number of its window."""

    codec = Averages()
    shower = None

    def __init__(self):
        self.rounds: list[list[int]] = []  # seeds of the canvases of each

    def latents(self, params, canvases):
        self.rounds.append([canvas.seed for canvas in canvases])
        return [
            np.where(one.known_thw[..., None], one.latent_THWC, one.seed + one.window).astype(np.float32)
            if one.latent_THWC is not None
            else np.full((*one.grid, 1), one.seed + one.window, np.float32)
            for one in canvases
        ]


@pytest.fixture
def seeds() -> Any:
    return Seeds()


def a_job(seed, frames=29, task="text", **given):
    return job(task, frames=frames, request={"seed": seed}, **given)


def run(rounds):
    """Returns the ids of what each round finished, until nothing is left."""
    found = []
    while rounds:
        found.append([one.id for one in rounds.step()])
    return found


def values(pieces):
    return np.concatenate(pieces)[:, 0, 0, 0].tolist()


def alone(one) -> list[int]:
    sampler: Any = Seeds()
    (made,) = make_all(sampler, {}, [one], LIMITS)
    return values([made.clip])


def test_jobs_join_and_leave_between_rounds_and_become_what_they_are_alone(seeds):
    """Of three windows, as all of 29 frames are here."""
    frames: dict[str, list[np.ndarray]] = {name: [] for name in ("first", "late", "gone", "short")}
    rounds = Rounds(seeds, {}, LIMITS)
    assert rounds.add(a_job(10), frames["first"].append) == 0
    gone = rounds.add(a_job(20), frames["gone"].append)
    assert rounds.step() == []
    rounds.add(a_job(30), frames["late"].append)
    assert rounds.step() == []
    rounds.cancel(gone)
    had = len(frames["gone"])
    rounds.add(a_job(40, frames=5), frames["short"].append)
    assert run(rounds) == [[0, 3], [2]]
    assert seeds.rounds == [[10, 20], [10, 20, 30], [10, 30, 40], [30]]
    assert len(frames["gone"]) == had, "nothing more of what was cancelled"
    for name, one in (("first", a_job(10)), ("late", a_job(30)), ("short", a_job(40, frames=5))):
        assert values(frames[name]) == alone(one), name
    assert rounds.step() == [], "nothing is left to do"


def test_what_has_no_room_waits_in_turn_and_may_leave_before_it_began(seeds):
    rounds = Rounds(seeds, {}, LIMITS, most=2)
    added = [rounds.add(a_job(seed, frames=13 + 16 * (seed == 1)), lambda _: None) for seed in (1, 2, 3, 4, 5)]
    assert (len(rounds), rounds.full) == (5, True)
    rounds.cancel(added[3])
    assert run(rounds) == [[1], [2], [0, 4]]
    assert seeds.rounds == [[1, 2], [1, 3], [1, 5]]


def test_only_what_is_left_can_be_cancelled(seeds):
    rounds = Rounds(seeds, {}, LIMITS)
    number = rounds.add(a_job(1, frames=13), lambda _: None)
    assert run(rounds) == [[number]]
    for unknown in (number, 7):
        with pytest.raises(KeyError, match=f"no job {unknown} waits or is under way"):
            rounds.cancel(unknown)


def test_a_job_that_fails_leaves_the_others_as_they_were(seeds):
    """A full disk, say: the sink of one raises."""

    def full(_):
        raise OSError("no space left")

    frames: list[np.ndarray] = []
    rounds = Rounds(seeds, {}, LIMITS)
    rounds.add(a_job(1), full)
    rounds.add(a_job(2), frames.append)
    with pytest.raises(OSError, match="no space left"):
        rounds.step()
    assert run(rounds)[-1] == [1]
    assert values(frames) == alone(a_job(2))


def test_jobs_are_asked_for_only_when_there_is_room(seeds):
    asked = []

    def jobs():
        for seed in range(5):
            asked.append(seed)
            yield a_job(seed, frames=13)

    done = run_jobs(seeds, {}, jobs(), LIMITS, lambda *_: lambda _: None, most=2)
    assert next(done) == (0, {})
    assert asked == [0, 1]
    assert [number for number, _ in done] == [1, 2, 3, 4]
    assert seeds.rounds == [[0, 1], [2, 3], [4]]


def test_what_needs_no_canvas_is_done_at_once(seeds, monkeypatch):
    """No task is such a one yet; a conversation may be over before it has asked for anything."""
    monkeypatch.setattr(refine, "MAKERS", {"edit": lambda scene: iter(())})
    sampler = SimpleNamespace(shower=None, codec=seeds.codec, latents=None)
    rounds = Rounds(sampler, {}, LIMITS)  # nothing is solved
    rounds.add(a_job(1, task="edit", clips=(video(*range(5)),)), lambda _: None)
    assert [one.id for one in rounds.step()] == [0]
