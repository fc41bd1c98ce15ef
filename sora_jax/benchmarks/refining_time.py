"""How long a large video takes in passes, small and slow first, over how long it takes at once.

  python -m sora_jax.benchmarks.refining_time --workdir=runs/refine --refine=space:2 --json=FILE

Both take turns, after one turn each in which their programs are compiled. All passes have the steps that the run
samples with; where `--steps` or its `sampling.refiner.steps` say how many those that refine have, that is timed beside.
"""

import dataclasses
from collections.abc import Callable, Sequence

from sora_jax.benchmarks.figures import Figure, publish
from sora_jax.benchmarks.turns import fewest_seconds
from sora_jax.core.commands import Flags, run_command
from sora_jax.experiment.session import Session, open_session
from sora_jax.generate.job import read_job
from sora_jax.generate.limits import ModelLimits
from sora_jax.generate.request import Request
from sora_jax.generate.scheduler import Made, make_all

_FLAGS = Flags()
_WORKDIR = _FLAGS.workdir()
_REFINE = _FLAGS.string("refine", "space:2", "The passes, as of sample.")
_SIZE = _FLAGS.string("size", None, "HEIGHTxWIDTH of the large video, px; default: as the run's samples.")
_FRAMES = _FLAGS.integer("frames", None, "Of it; default: as the run's samples.", least=2)
_STEPS = _FLAGS.integer("steps", None, "Of a pass that refines; default: as sampling.refiner.steps says.", least=1)
_VIDEOS = _FLAGS.integer("videos", 1, "Made at once.", least=1)
_ROUNDS = _FLAGS.integer("rounds", 3, "Turns of each; the fastest counts.", least=1)
_JSON = _FLAGS.figures()
_PROMPT = "a red circle moves right on a dark background"


def main(_: Sequence[str]) -> None:
    """Measures and publishes."""
    asked = Request(prompt=(_PROMPT,), size=_SIZE.value, frames=_FRAMES.value, refine=_REFINE.value)
    figures = time_figures(
        open_session(_WORKDIR.value), asked, steps=_STEPS.value, videos=_VIDEOS.value, rounds=_ROUNDS.value
    )
    publish(figures, _JSON.value)


def time_figures(session: Session, asked: Request, *, steps: int | None, videos: int, rounds: int) -> list[Figure]:
    """Returns the seconds of `videos` videos at once and in passes, and their ratio.

    Also where passes that refine have `steps`, None: as the run's refiner has them, if it says so.
    """
    limits, sampler, params = session.limits, session.models.sampler(videos=videos), session.models.params

    def making(refine: str | None, limits: ModelLimits) -> Callable[[], list[Made]]:
        one = dataclasses.replace(asked, refine=refine)
        jobs = [read_job(dataclasses.replace(one, seed=seed), limits) for seed in range(videos)]
        return lambda: make_all(sampler, params, jobs, limits)

    ways = {"one_pass": making("none", limits), "passes": making(asked.refine, _with_steps(limits, None))}
    steps = steps or (limits.refiner.config.steps if limits.refiner is not None else None)
    if steps is not None and limits.refiner is not None:
        ways["passes_fewer"] = making(asked.refine, _with_steps(limits, steps))
    for make in ways.values():
        make()
    seconds = fewest_seconds(ways, rounds=rounds)
    clip = "x".join(map(str, (asked.frames or limits.frames, *(asked.pixels() or limits.size))))
    what = f"{videos} of {clip}"
    figures = [
        Figure(name="one_pass_seconds", value=seconds["one_pass"], target=None, meaning=f"s for {what} at once"),
        Figure(
            name="passes_ratio",
            value=seconds["passes"] / seconds["one_pass"],
            target=None,
            meaning=f"time in passes {asked.refine} over that, each of as many steps",
        ),
    ]
    if "passes_fewer" in seconds:
        figures.append(
            Figure(
                name="passes_fewer_ratio",
                value=seconds["passes_fewer"] / seconds["one_pass"],
                target="at most 0.6",
                meaning=f"the same with {steps} steps of each pass that refines",
            )
        )
    return figures


def _with_steps(limits: ModelLimits, steps: int | None) -> ModelLimits:
    """Returns limits whose refiner takes so many steps."""
    if limits.refiner is None:
        return limits
    config = dataclasses.replace(limits.refiner.config, steps=steps)
    return dataclasses.replace(limits, refiner=dataclasses.replace(limits.refiner, config=config))


if __name__ == "__main__":
    run_command(main, _FLAGS)
