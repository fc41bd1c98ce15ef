"""Real tokens a second of the train step: packed rows against padding and buckets, ours against plain torch.

  python -m sora_jax.benchmarks.train_step --json=train_step.json
  python -m sora_jax.benchmarks.train_step --model=2b --side_scale=4 --rows=1
  python -m sora_jax.benchmarks.train_step --text_pad_to=512 --contestants=ours_packed,ours_padded

All contestants train on one stream of clips (`clip_mix`), with the same mathematics, weights, loss and optimizer, on
one device: float32 on a CPU, bfloat16 on a GPU. Whatever a contestant has to fill up to make its batches is counted
against it, except that torch takes a shorter last batch of a size, which in jax would be another program to compile.
The figures against torch need it (`pip install -e ".[parity]"`); without it the rest is measured.
"""

import dataclasses
import functools
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.benchmarks.ceilings import ceiling_figures
from sora_jax.benchmarks.clip_mix import (
    EQUAL_GRID,
    Arrangement,
    ClipLayout,
    MadeUpClip,
    bucketed,
    draw_clips,
    packed,
    padded_batches,
)
from sora_jax.benchmarks.figures import Figure, publish
from sora_jax.benchmarks.our_step import OurStep, predict_once, random_params
from sora_jax.benchmarks.torch_step import Masking, TorchStep, TorchWan
from sora_jax.benchmarks.turns import CLOCKS, fewest_seconds
from sora_jax.core.chips import peak_flops
from sora_jax.core.commands import Flags, run_command
from sora_jax.core.errors import UserError
from sora_jax.core.host_memory import use_huge_pages
from sora_jax.core.precision import compute_dtype
from sora_jax.core.tree import Params, count_parameters
from sora_jax.models.flops import transformer_flops
from sora_jax.models.transformer_config import TransformerConfig
from sora_jax.nn.stack import REMAT_POLICIES

# (width, depth, heads): for a CPU; DiT-XL's width and depth (arXiv 2212.09748), heads of 128; about 2B parameters.
SIZES = {"small": (256, 6, 4), "xl": (1152, 28, 9), "2b": (2048, 28, 16)}
CONTESTANTS = tuple(f"{who}_{how}" for who in ("ours", "torch") for how in ("packed", "padded", "bucketed", "equal"))
# (name, numerator, denominator, target, meaning)
_RATIOS = (
    ("packed_over_padded", "ours_packed", "ours_padded", "at least 1.8", "ours, packed rows over padded rows"),
    ("packed_over_bucketed", "ours_packed", "ours_bucketed", "at least 1.1", "ours, packed rows over exact buckets"),
    ("padded_ratio", "ours_packed", "torch_padded", "at least 1.4", "ours packed over torch padded with a key mask"),
    ("bucketed_ratio", "ours_packed", "torch_bucketed", "at least 0.8", "ours packed over torch in exact buckets"),
    ("equal_shape_ratio", "ours_equal", "torch_equal", "at least 0.8", "ours over torch, clips all of one shape"),
    ("packed_ratio", "ours_packed", "torch_packed", None, "ours packed over torch packed with a segment mask"),
)
# What torch has to hide in each arrangement.
_MASKING: dict[str, Masking] = {"packed": "segments", "padded": "keys", "bucketed": "none", "equal": "none"}

_FLAGS = Flags()
_JSON = _FLAGS.figures()
_CLOCK = _FLAGS.choice(
    "clock", "wall", CLOCKS, "`process` counts this process's seconds on a CPU that others use, too."
)
_ONLY = _FLAGS.words("contestants", f"Which contestants run: {', '.join(CONTESTANTS)}; by default all.")
_SIZE = _FLAGS.choice("model", None, list(SIZES), "Of the transformer; by default small on a CPU, else xl.")
_SCALE = _FLAGS.integer(
    "side_scale", None, "Times rows and columns of every token grid; by default 1 on a CPU, else 4.", least=1
)
_ROW_TOKENS = _FLAGS.integer("row_tokens", None, "Of a packed row; by default 1,024 x side_scale squared.", least=1)
_ROWS = _FLAGS.integer("rows", 1, "Packed rows of a batch; other batches have at most as many tokens.", least=1)
_CLIPS = _FLAGS.integer("clips", 96, "Of the stream, one pass over which is timed.", least=1)
_ROUNDS = _FLAGS.integer("rounds", 3, "Passes of each contestant; the fastest counts.", least=1)
_REMAT = _FLAGS.choice("remat", "none", list(REMAT_POLICIES), "What our backward pass keeps.")
_PAD = _FLAGS.integer("text_pad_to", None, "Text tokens that ours pads each text to, as Wan does: 512.", least=1)
_COMPILE = _FLAGS.switch("compile", None, "Whether torch compiles; by default on a GPU only.")
_PROFILE = _FLAGS.path("profile", None, "Where to write a profile of one pass of ours, for `benchmarks.kernels`.")
_FLAGS.rename("stream_clips", "clips")
_FLAGS.rename("passes", "rounds")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared, besides the clips.

    Attributes:
      config: The transformer.
      layout: Of the clips.
      row_tokens: Of a packed row.
      rows: Packed rows of a batch.
      clips: Of the stream.
      rounds: Passes over the stream.
      compiled: Whether torch compiles.
      clock: Of `turns.CLOCKS`.
      profile: Where a profile of one pass of each of ours is written; None: nowhere.
    """

    config: TransformerConfig
    layout: ClipLayout
    row_tokens: int
    rows: int
    clips: int
    rounds: int
    compiled: bool
    clock: str = "wall"
    profile: str | None = None


def main(_: Sequence[str]) -> None:
    """Measures and publishes."""
    publish(figures_of(comparison_of_flags(), list(_ONLY.value)), _JSON.value)


def figures_of(comparison: Comparison, names: list[str]) -> list[Figure]:
    """Returns the figures of these contestants, all without a name; of ours alone where torch is not installed.

    Raises UserError for a name that is none.
    """
    names = names or list(CONTESTANTS)
    unknown = sorted(set(names) - set(CONTESTANTS))
    if unknown:
        raise UserError(f"--contestants={','.join(unknown)} is none of {', '.join(CONTESTANTS)}")
    ours = [name for name in names if name.startswith("ours")]
    if ours != names and comparison.config.text_pad_to is not None:
        raise UserError("--text_pad_to is of ours alone: --contestants=ours_packed,ours_padded,ours_bucketed")
    if importlib.util.find_spec("torch") is None and ours != names:
        print('no torch here, so ours alone is measured: pip install -e ".[parity]"')
        names = ours
    return compare(comparison, names)


def comparison_of_flags() -> Comparison:
    """Returns what the flags say; sizes depend on the platform by default."""
    on_cpu = jax.default_backend() == "cpu"
    size = _SIZE.value or ("small" if on_cpu else "xl")
    scale = _SCALE.value or (1 if on_cpu else 4)
    layout = ClipLayout(patch_width=64, text_dim=256 if size == "small" else 4096, text_tokens=16, side_scale=scale)
    row_tokens = _ROW_TOKENS.value or 1_024 * scale**2
    return Comparison(
        config=transformer_config(*SIZES[size], remat=_REMAT.value, text_pad_to=_PAD.value),
        layout=layout,
        row_tokens=row_tokens,
        rows=_ROWS.value,
        clips=_CLIPS.value,
        rounds=_ROUNDS.value,
        compiled=not on_cpu if _COMPILE.value is None else _COMPILE.value,
        clock=_CLOCK.value,
        profile=_PROFILE.value,
    )


def transformer_config(
    width: int, depth: int, heads: int, *, remat: str, text_pad_to: int | None = None
) -> TransformerConfig:
    """Returns the public Wan block at that shape; patches are 1x2x2 of a latent."""
    return TransformerConfig(
        patch=(1, 2, 2),
        width=width,
        base_width=None,
        depth=depth,
        heads=heads,
        mlp_width=4 * width,
        frequency_dim=256,
        rope_theta=10_000.0,
        time_rate=4.0,
        attention="auto",
        exchange="gather",
        remat=remat,
        pooled_text=False,
        place_features=False,
        text_pad_to=text_pad_to,
        given_channels=None,
        image_dim=None,
        image_positions=None,
        lora=None,
    )


def arrange(comparison: Comparison, how: str, *, short_tail: bool) -> Arrangement:
    """Returns the stream packed, padded or bucketed, or as many clips that are all alike, as exact batches."""
    batch_tokens = comparison.row_tokens * comparison.rows
    if how == "equal":
        clips = draw_clips(comparison.clips, comparison.layout, grids=(EQUAL_GRID,))
        return bucketed(clips, batch_tokens=batch_tokens, short_tail=short_tail)
    clips = draw_clips(comparison.clips, comparison.layout)
    check_rows(clips, comparison.row_tokens)
    if how == "packed":
        return packed(clips, row_tokens=comparison.row_tokens, rows=comparison.rows, short_tail=short_tail)
    make = padded_batches if how == "padded" else bucketed
    return make(clips, batch_tokens=batch_tokens, short_tail=short_tail)


def check_rows(clips: Sequence[MadeUpClip], row_tokens: int) -> None:
    """Raises UserError where a clip is longer than a row."""
    longest = max(clip.tokens for clip in clips)
    if longest > row_tokens:
        raise UserError(f"a clip has {longest} tokens, a row only {row_tokens}: --row_tokens={longest} or more")


def compare(comparison: Comparison, names: Sequence[str]) -> list[Figure]:
    """Returns the figures of the named contestants and of those pairs of them that are compared."""
    params = random_params(comparison.config, comparison.layout)
    print(headline(comparison, params), flush=True)
    figures = [] if jax.default_backend() == "cpu" else ceiling_figures()
    if any(name.startswith("torch") for name in names):
        figures.append(difference_figure(comparison, params))
        print(f"largest difference of the predictions, ours and torch's: {figures[-1].value:.2e}", flush=True)
    arrangements = {
        name: arrange(comparison, name.split("_")[1], short_tail=name.startswith("torch")) for name in names
    }
    calls = contestants(comparison, params, arrangements)
    seconds = fewest_seconds(calls, rounds=comparison.rounds, clock=comparison.clock)
    if comparison.profile is not None:
        for name in (name for name in names if name.startswith("ours")):
            with jax.profiler.trace(f"{comparison.profile}/{name}"):
                calls[name]()
    rates = {name: arrangements[name].work().tokens / seconds[name] for name in names}
    figures += ratio_figures(rates)
    if {"ours_packed", "ours_bucketed"} <= set(names):
        figures.append(
            Figure(
                name="packed_over_full_buckets",
                value=rates["ours_packed"] / rates["ours_bucketed"] * arrangements["ours_bucketed"].fill(),
                target=None,
                meaning="the same if no bucket ever had an unfilled batch",
            )
        )
    for name in names:
        figures += contestant_figures(comparison, name, arrangements[name], seconds[name])
    return figures


def headline(comparison: Comparison, params: Params) -> str:
    """Returns a line about what is compared, and where."""
    config = comparison.config
    return (
        f"width {config.width}, depth {config.depth}, {count_parameters(params):,} parameters, "
        f"{comparison.clips} clips, {comparison.rows} rows of {comparison.row_tokens:,} tokens a batch, "
        f"{compute_dtype(None)}, {jax.devices()[0].device_kind}, "
        f"torch {'compiles' if comparison.compiled else 'does not compile'}"
    )


def torch_device() -> str:
    """Returns the name that torch has for the device that jax uses; UserError where it has none."""
    if jax.default_backend() == "cpu":
        return "cpu"
    if jax.default_backend() == "gpu":
        return "cuda"
    raise UserError(
        f"torch is not compared on {jax.default_backend()}: --contestants=ours_packed,ours_padded,ours_bucketed"
    )


def contestants(
    comparison: Comparison, params: Params, arrangements: Mapping[str, Arrangement]
) -> dict[str, Callable[[], object]]:
    """Returns a call for each arrangement that trains over it once; every shape is compiled and run before."""
    calls: dict[str, Callable[[], object]] = {}
    ours = [name for name in arrangements if name.startswith("ours")]
    if ours:
        step = OurStep(comparison.config, comparison.layout, params, dtype=compute_dtype(None))
        for name in ours:
            step.train([step.put(batch) for batch in arrangements[name].shapes()])
            batches = [step.put(batch) for batch in arrangements[name].batches]
            calls[name] = functools.partial(step.train, batches)
    theirs = [name for name in arrangements if name.startswith("torch")]
    if theirs:
        peer_step = TorchStep(comparison.config, params, device=torch_device(), compiled=comparison.compiled)
        for name in theirs:
            model = peer_step.model(_MASKING[name.split("_")[1]])
            loss_of = peer_step.loss_of(model)
            peer_step.train(loss_of, [model.put(batch) for batch in arrangements[name].shapes()])
            batches = [model.put(batch) for batch in arrangements[name].batches]
            calls[name] = functools.partial(peer_step.train, loss_of, batches)
    return {name: calls[name] for name in arrangements}


def difference_figure(comparison: Comparison, params: Params) -> Figure:
    """Returns the largest difference of the two predictions for one clip, in float32."""
    clips = draw_clips(1, comparison.layout)
    batch = bucketed(clips, batch_tokens=clips[0].tokens, short_tail=True).batches[0]
    model = TorchWan(comparison.config, device=torch_device(), masking="none")
    with model.torch.no_grad():
        theirs_BLP = model.predict(model.weights(params), model.put(batch)).cpu().numpy()
    ours_BLP = predict_once(comparison.config, comparison.layout, params, batch)
    return Figure(
        name="difference",
        value=float(np.abs(ours_BLP - theirs_BLP).max()),
        target="at most 1e-4",
        meaning=f"of the predictions for one clip, whose deviation is {ours_BLP.std():.2g}",
    )


def ratio_figures(rates: dict[str, float]) -> list[Figure]:
    """Returns the ratios of rates, tokens a second, whose both sides were measured."""
    return [
        Figure(name=name, value=rates[over] / rates[under], target=target, meaning=meaning)
        for name, over, under, target, meaning in _RATIOS
        if over in rates and under in rates
    ]


def contestant_figures(comparison: Comparison, name: str, arrangement: Arrangement, seconds: float) -> list[Figure]:
    """Returns rate, fill and FLOP/s of one contestant, and its share of the device's peak where that is known."""
    work, layout = arrangement.work(), comparison.layout
    forward = transformer_flops(comparison.config, text_dim=layout.text_dim, patch_width=layout.patch_width, work=work)
    flops = 3 * forward / seconds  # the backward pass multiplies twice where the forward pass does once
    figures = [
        Figure(name=f"{name}_tokens_per_second", value=work.tokens / seconds, target=None, meaning="real tokens"),
        Figure(name=f"{name}_fill", value=arrangement.fill(), target=None, meaning="real tokens over slots"),
        Figure(name=f"{name}_gflops", value=flops / 1e9, target=None, meaning="model FLOPs, 1e9 a second"),
    ]
    peak = peak_flops(jax.devices()[0].device_kind)
    if peak is not None and compute_dtype(None) == jnp.bfloat16:
        meaning = f"model FLOPs over the peak of {peak / 1e12:.0f}e12 a second"
        figures.append(Figure(name=f"{name}_mfu", value=flops / peak, target=None, meaning=meaning))
    return figures


if __name__ == "__main__":
    use_huge_pages()
    # On a GPU jax would else take most of the memory before torch gets any.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    run_command(main, _FLAGS)
