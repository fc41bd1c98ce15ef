"""Which noise levels training sees, and which ones sampling passes through.

More tokens show more of the picture through the same noise, so a larger clip needs more noise for the same
difficulty: both distributions are shifted by the segment's own token count (arXiv 2403.03206, section 5.3.2), that
of the tokens which are there: one that was dropped shows nothing.

Letters: B rows, S segments of a row.
"""

import dataclasses

import jax
import jax.numpy as jnp

from sora_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """The distribution of sigma; raises UserError on impossible values.

    mean, std: of logit(sigma) before the shift (logit-normal, arXiv 2403.03206, section 3.1).
    shift_base_tokens: the token count that is not shifted; None shifts nothing.
    shift_power: alpha = (tokens / base) ** power; the paper's square root.
    shift_limits: smallest and largest alpha.
    uniform_share: share of the segments that draw a uniform level, whatever their tokens, so that no level is rare.
    uniform_shift: alpha of these levels, as the public video models were trained; None: 1, as they come.
    """

    mean: float
    std: float
    shift_base_tokens: float | None
    shift_power: float
    shift_limits: tuple[float, float]
    uniform_share: float
    uniform_shift: float | None

    def __post_init__(self):
        if self.std <= 0:
            raise UserError(f"noise std {self.std} is not positive; 1.0 is usual")
        if self.shift_base_tokens is not None and self.shift_base_tokens <= 0:
            raise UserError(
                f"noise shift_base_tokens {self.shift_base_tokens} is not positive; None turns the shift off"
            )
        low, high = self.shift_limits
        if not 0 < low <= high:
            raise UserError(f"noise shift_limits ({low}, {high}) must be positive and in order")
        if not 0 <= self.uniform_share <= 1:
            raise UserError(f"noise uniform_share {self.uniform_share} is outside [0, 1]")
        if self.uniform_shift is not None and self.uniform_shift <= 0:
            raise UserError(f"noise uniform_shift {self.uniform_shift} is not positive; None shifts nothing")


def draw(
    key: jax.Array, tokens_BS: jax.Array, config: NoiseConfig, *, within: tuple[float, float] = (0.0, 1.0)
) -> jax.Array:
    """Returns sigma_BS float32 in (0, 1]: one level per segment; absent segments (0 tokens) get 1.

    Stratified: the levels of the n present segments fall one into each n-th of the distribution, whatever row
    they are in, so that batches differ little in difficulty. Each level alone follows the exact distribution: that of
    the config given that the level is in [low, high], `within`, of which nothing else is ever drawn.
    """
    low, high = within
    present_BS = tokens_BS > 0
    level_key, tail_key, choice_key = jax.random.split(key, 3)
    u_BS, tail_BS = _stratified(level_key, present_BS), _stratified(tail_key, present_BS)
    tail_share: jax.Array | float = config.uniform_share
    alpha_BS = alpha(tokens_BS, config)
    if within == (0.0, 1.0):
        normal_BS = _quantile(u_BS)
    else:
        normal_BS, mass_BS = _normal_within(u_BS, within, alpha_BS, config)
        tail_BS, tail_mass = _between(tail_BS, *(1 - below for below in reversed(_uniform_below(within, config))))
        tail_share = tail_mass * tail_share / (tail_mass * tail_share + mass_BS * (1 - tail_share))
    sigma_BS = shift(jax.nn.sigmoid(config.mean + config.std * normal_BS), alpha_BS)
    uniform_BS = 1 - tail_BS if config.uniform_shift is None else shift(1 - tail_BS, jnp.float32(config.uniform_shift))
    in_tail_BS = _stratified(choice_key, present_BS) < tail_share
    sigma_BS = jnp.where(in_tail_BS, uniform_BS, sigma_BS)
    return jnp.where(present_BS, jnp.clip(sigma_BS, max(low, jnp.finfo(jnp.float32).tiny), high), 1.0)


def schedule(
    num_steps: int,
    num_tokens: jax.Array | int,
    config: NoiseConfig,
    *,
    start: jax.Array | float = 1.0,
    through: tuple[float, ...] = (),
) -> jax.Array:
    """Returns sigma float32 (num_steps + 1, *num_tokens.shape), falling to exactly 0, by default from exactly 1.

    Evenly spaced, then shifted like the training levels. `num_tokens` is a count or tokens_BS. `start`, of that shape
    or a number in [0, 1], is where the even levels begin: editing begins part of the way (SDEdit, arXiv 2108.01073).
    Levels `through` are met exactly: the nearest one of the schedule moves there, unless that is its start or its end.
    Raises UserError on less than one step.
    """
    if num_steps < 1:
        raise UserError(f"{num_steps} sampling steps: at least 1 is needed")
    factor = alpha(num_tokens, config)
    even = jnp.linspace(1.0, 0.0, num_steps + 1, dtype=jnp.float32)
    sigma = shift(even.reshape(-1, *[1] * factor.ndim) * start, factor)
    number = jnp.arange(num_steps + 1).reshape(-1, *[1] * factor.ndim)
    for level in through:
        nearest = jnp.argmin(jnp.abs(sigma - level), axis=0)
        met = (number == nearest) & (number > 0) & (number < num_steps) & (level < sigma[:1])
        sigma = jnp.where(met, level, sigma)
    return sigma


def alpha(tokens: jax.Array | int, config: NoiseConfig) -> jax.Array:
    """Returns the shift factor of each token count, float32, same shape."""
    counts = jnp.asarray(tokens, jnp.float32)
    if config.shift_base_tokens is None:
        return jnp.ones_like(counts)
    low, high = config.shift_limits
    return jnp.clip((counts / config.shift_base_tokens) ** config.shift_power, low, high)


def shift(sigma: jax.Array, alpha: jax.Array) -> jax.Array:
    """Returns alpha sigma / (1 + (alpha - 1) sigma): multiplies the odds sigma / (1 - sigma) by alpha.

    Written so that 0 and 1 are kept exactly.
    """
    return alpha * sigma / (alpha * sigma + (1 - sigma))


def _normal_within(
    u_BS: jax.Array, levels: tuple[float, float], alpha_BS: jax.Array, config: NoiseConfig
) -> tuple[jax.Array, jax.Array]:
    """Returns (standard normal numbers of the levels between these two, which share of all the normal ones these are).

    The numbers are quantiles: u_BS of [0, 1] leads evenly from the lower level to the upper one.
    """
    unshifted = (shift(jnp.float32(level), 1 / alpha_BS) for level in levels)
    # The logit of 0 and 1 is infinite, of which the share is 0 and 1.
    low_BS, high_BS = ((jax.scipy.special.logit(level_BS) - config.mean) / config.std for level_BS in unshifted)
    ndtr = jax.scipy.special.ndtr
    # Rare levels are counted from the end that they are near: float32 has few numbers close to a share of 1.
    rare_BS = ndtr(high_BS) - ndtr(low_BS) < 1e-3
    sign_BS = jnp.where(rare_BS & (low_BS > 0), -1.0, 1.0)
    first_BS, last_BS = ndtr(sign_BS * low_BS), ndtr(sign_BS * high_BS)
    mass_BS = jnp.abs(last_BS - first_BS)
    share_BS = first_BS + u_BS * (last_BS - first_BS)
    return sign_BS * _quantile(share_BS, whole=jnp.where(rare_BS, mass_BS, 1.0)), mass_BS


def _quantile(share_BS: jax.Array, *, whole: jax.Array | float = 1.0) -> jax.Array:
    """Returns the standard normal number that a share of all is below; `whole` is what all shares together come to."""
    # One float32 step away from 0 and 1, where the quantile is infinite.
    least = jnp.maximum(1e-7 * whole, jnp.finfo(jnp.float32).tiny)
    return jax.scipy.special.ndtri(jnp.clip(share_BS, least, 1 - 1e-7))


def _uniform_below(levels: tuple[float, float], config: NoiseConfig) -> tuple[float, float]:
    """Returns which shares of the levels of the uniform share are below these."""
    factor = config.uniform_shift or 1.0
    low, high = (level / (level + factor * (1 - level)) for level in levels)
    return low, high


def _between(u_BS: jax.Array, low: float, high: float) -> tuple[jax.Array, float]:
    """Returns (numbers of [0, 1] squeezed into the quantiles from `low` to `high`, how many of all these are)."""
    return low + u_BS * (high - low), high - low


def _stratified(key: jax.Array, present_BS: jax.Array) -> jax.Array:
    """Returns u_BS in [0, 1]: over the present entries, one in each of n equal cells, in random order."""
    order_key, jitter_key = jax.random.split(key)
    score_BS = jax.random.uniform(order_key, present_BS.shape)
    # Absent entries score last, so the present ones hold the ranks 0 ... n - 1.
    score_M = jnp.where(present_BS, score_BS, 2.0).reshape(-1)
    rank_BS = jnp.argsort(jnp.argsort(score_M)).reshape(present_BS.shape)
    jitter_BS = jax.random.uniform(jitter_key, present_BS.shape)
    return (rank_BS + jitter_BS) / jnp.maximum(jnp.sum(present_BS), 1)
