"""Mistakes of the kind that everybody makes, on the command line."""

import dataclasses

from sora_jax.benchmarks.drills.bench import Bench
from sora_jax.benchmarks.drills.registry import Result, Tally, drill
from sora_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Typo:
    """A mistake: the flag as written, the key that must be named, and the words of which one must be offered."""

    flag: str
    key: str
    offers: tuple[str, ...]


def _typo(flag: str, key: str, *offers: str) -> Typo:
    return Typo(flag=flag, key=key, offers=offers)


TYPOS = (
    # Keys
    _typo("transformer.widht=64", "widht", "width"),
    _typo("stages.videos.stesp=10", "stesp", "steps"),
    _typo("optimzer.name=adamw", "optimzer", "optimizer"),
    _typo("checkpoint.every_step=5", "every_step", "every_steps"),
    _typo("log.evry_steps=5", "evry_steps", "every_steps"),
    _typo("ema.width=(0.1,)", "width", "widths"),
    _typo("sampling.guidence.scale=3", "guidence", "guidance"),
    _typo("packing.row=4", "row", "rows"),
    _typo("data.max_frame=5", "max_frame", "max_frames"),
    _typo("diffusion.noise.mena=1.0", "mena", "mean"),
    _typo("autoencoder.chanels=4", "chanels", "channels"),
    _typo("stages.video.steps=10", "video", "videos"),
    # Types
    _typo("stages.videos.steps=many", "steps", "int"),
    _typo("transformer.width=12.5", "width", "int"),
    _typo("checkpoint.keep=two", "keep", "int"),
    _typo("autoencoder.remat=maybe", "remat", "bool", "true", "True"),
    _typo("ema.widths=x", "widths", "tuple", "0.1"),
    _typo("sampling.size=(32,)", "size", "tuple", "two", "[int, int]"),
    # Names out of a list
    _typo("optimizer.name=adam", "name", "adamw"),
    _typo("sampling.solver=eulr", "solver", "euler"),
    _typo("precision=bf16", "precision", "bfloat16"),
    _typo("data.source=foldr", "source", "folder"),
    _typo("transformer.remat=ful", "remat", "full"),
    _typo("diffusion.path.prediction=velocty", "prediction", "velocity"),
    # Out of range
    _typo("stages.videos.steps=-5", "steps", "at least 1"),
    _typo("checkpoint.every_steps=0", "every_steps", "at least 1"),
    _typo("seed=-1", "seed", "0 or more"),
    _typo("ema.widths=(-0.1,)", "widths", "0.28"),
    # Units: a percentage for a share, seconds with their letter
    _typo("data.max_bad_share=20.0", "max_bad_share", "[0, 1]"),
    _typo("sampling.max_seconds=60s", "max_seconds", "float", "number"),
)


@drill(target="at least 28 of 30 answered with the right key", full=len(TYPOS), quick=6)
def typos(bench: Bench, count: int) -> Result:
    """One mistake at a time in a flag of the run: key, type, name out of a list, range, unit.

    The run must end with code 2 and one sentence that names the key and offers what is valid, before it writes a
    workdir or compiles anything.
    """
    tally, slowest, cache = Tally(), 0.0, bench.new("cache")
    chosen = [TYPOS[number * len(TYPOS) // count] for number in range(min(count, len(TYPOS)))]
    for typo in chosen:
        workdir = bench.new("typo")
        ended = bench.run(
            *bench.flags(workdir), f"--config.{typo.flag}", environment={"JAX_COMPILATION_CACHE_DIR": str(cache)}
        )
        slowest = max(slowest, ended.seconds)
        said = ended.last_line
        fault = ""
        if ended.code != UserError.exit_code:
            fault = f"--config.{typo.flag} ended with code {ended.code}: {said}"
        elif typo.key not in said or not any(offer in said for offer in typo.offers):
            fault = f"--config.{typo.flag} was answered: {said}"
        elif workdir.exists() or cache.exists():
            fault = f"--config.{typo.flag} was answered after work had begun"
        tally.check(fault)
    enough = (28 * len(chosen) + 29) // 30
    return tally.result(f"slowest answer {slowest:.1f} s", enough=enough)
