"""Latents to tokens and back: a token is one (pt, ph, pw) block of the latent, flattened.

Letters: T H W C latent, L tokens, P patch width = pt ph pw C. Works on numpy and on jax arrays alike.
"""

from typing import TypeVar

from einops import rearrange

from sora_jax.video.shapes import Size

ArrayT = TypeVar("ArrayT")


def patchify(latent_THWC: ArrayT, patch: Size) -> ArrayT:
    """Returns tokens_LP of a latent, same dtype, in (time, height, width) raster order.

    Inside a token the layout is (pt, ph, pw, C), the channel fastest. Each side must be a multiple of `patch`
    (`shapes.token_grid` says so in words).
    """
    return rearrange(
        latent_THWC,
        "(t pt) (h ph) (w pw) c -> (t h w) (pt ph pw c)",
        pt=patch[0],
        ph=patch[1],
        pw=patch[2],
    )


def unpatchify(tokens_LP: ArrayT, *, grid: Size, patch: Size, channels: int) -> ArrayT:
    """Returns latent_THWC of the tokens of one clip on `grid` (t, h, w): the exact inverse of `patchify`."""
    return rearrange(
        tokens_LP,
        "(t h w) (pt ph pw c) -> (t pt) (h ph) (w pw) c",
        t=grid[0],
        h=grid[1],
        w=grid[2],
        pt=patch[0],
        ph=patch[1],
        pw=patch[2],
        c=channels,
    )
