"""Model FLOPs of a captioner over packed rows, counted as `models/flops.py` counts those of the transformer."""

from sora_jax.data.caption_tokens import SLOT_VALUES
from sora_jax.data.tokens import BYTES_PER_TOKEN
from sora_jax.models.captioner import TIME_DIM, CaptionerConfig
from sora_jax.models.flops import Work
from sora_jax.models.place import PLACE_DIM


def captioner_flops(config: CaptionerConfig, *, patch_width: int, work: Work) -> float:
    """Returns the FLOPs of one forward pass over clips and their captions, each with an END behind it.

    Attention is counted over whole clips, also where the encoder keeps to their frames, and over half of the squares of
    captions, since it is causal there.
    """
    width, words = config.width, _words(work)
    places = work.tokens * 2 * (patch_width + PLACE_DIM + TIME_DIM) * width
    # Keys and values: the generative pooler's of all tokens of clips, the contrastive one's of what that gathered.
    pooled = 2 * 2 * width**2 * (_seen(config, work) + (work.tokens if config.generative_queries else 0))
    return float(places + pooled + _whole(config, work) + words * _spelled(width, config.local_width))


def recomputed_flops(config: CaptionerConfig, *, work: Work) -> float:
    """Returns the FLOPs of the forward pass that the backward pass does again: those of stacks of blocks.

    With `remat="attention"` the results of attention are kept; with "none", and "dots", which keeps all products with
    weights too, nothing is multiplied again.
    """
    again = {"attention": _products, "full": _whole, "offload": _whole}
    if config.remat not in again:
        return 0.0
    # What a block ends with is added to what it was given, so that no gradient asks for it.
    tokens = config.depth * work.tokens + (config.unimodal + config.multimodal) * _words(work)
    return float(again[config.remat](config, work) - 2 * config.width * config.mlp_width * tokens)


def _whole(config: CaptionerConfig, work: Work) -> int:
    """Returns the FLOPs of all blocks."""
    return _products(config, work) + _attention(config, work)


def _products(config: CaptionerConfig, work: Work) -> int:
    """Returns the FLOPs of products with weights in all blocks."""
    width, words = config.width, _words(work)
    block = 2 * 4 * width**2 + 2 * 2 * width * config.mlp_width
    crossed = config.multimodal * 2 * 2 * width**2 * (_seen(config, work) + words)
    return (config.depth * work.tokens + (config.unimodal + config.multimodal) * words) * block + crossed


def _attention(config: CaptionerConfig, work: Work) -> int:
    """Returns the FLOPs of attention in all blocks, which multiplies with no weights."""
    squares = work.text_squares + 2 * work.text_tokens + work.segments
    texts = 2 * (config.unimodal + config.multimodal) * squares
    pairs = config.generative_queries * _words(work) or work.text_pairs + work.tokens
    return config.width * (4 * config.depth * work.pairs + texts + 4 * config.multimodal * pairs)


def _words(work: Work) -> int:
    """Returns the text tokens, each caption with its END."""
    return work.text_tokens + work.segments


def _seen(config: CaptionerConfig, work: Work) -> int:
    """Returns how many vectors of clips the text decoder sees."""
    return config.generative_queries * work.segments or work.tokens


def _spelled(width: int, local: int) -> int:
    """Returns the FLOPs of writing one token."""
    slot = 2 * local * (4 * local + 8 * local + SLOT_VALUES)
    return BYTES_PER_TOKEN * (2 * width * local + slot)
