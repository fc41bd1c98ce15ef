"""A clip that a video is to be like: read, and cut as clips are that the model was trained on."""

from sora_jax.core.errors import UserError
from sora_jax.data.clips import BadClip, Clip, fit_clip
from sora_jax.generate.given import Read
from sora_jax.generate.limits import ModelLimits
from sora_jax.generate.request import Request


def read_like(request: Request, limits: ModelLimits, read: Read) -> Clip | None:
    """Returns the clip that a request's video is to be like, of whole tokens; None where it names none.

    Raises UserError where the model is told no embeddings, and for a clip that cannot be read or is too small.
    """
    if request.like is None:
        return None
    if limits.embed is None:
        raise UserError(
            f"{limits.name} is told no embeddings of clips (transformer.embedding is None), which like "
            f"{request.like} needs: train with them (docs/captions.md), or give the clip as --video of task edit"
        )
    pixels_THWC, fps = read(request.like, max_frames=limits.window)
    time, height, width = (stride * patch for stride, patch in zip(limits.stride, limits.patch, strict=True))
    try:
        return fit_clip(
            Clip(pixels_THWC=pixels_THWC, fps=fps, captions=(), source_id=request.like),
            stride=(time, height, width),
            min_tokens=1,
            max_tokens=limits.row_tokens,
            max_frames=limits.window,
        ).clip
    except BadClip as error:
        raise UserError(str(error)) from error
