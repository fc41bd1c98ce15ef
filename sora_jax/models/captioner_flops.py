"""Model FLOPs of a captioner over packed rows, counted as `models/flops.py` counts those of the transformer."""

from sora_jax.data.caption_tokens import SLOT_VALUES
from sora_jax.data.tokens import BYTES_PER_TOKEN
from sora_jax.models.captioner import CaptionerConfig
from sora_jax.models.flops import Work
from sora_jax.models.place import PLACE_DIM


def captioner_flops(config: CaptionerConfig, *, patch_width: int, work: Work) -> float:
    """Returns the FLOPs of one forward pass over clips and their captions, each with an END behind it.

    Attention is counted over whole clips, also where the encoder keeps to their frames, and over half of the squares of
    captions, since it is causal there.
    """
    width, words = config.width, work.text_tokens + work.segments
    attention, feed = 2 * 4 * width**2, 2 * 2 * width * config.mlp_width
    clips = config.depth * (work.tokens * (attention + feed) + 4 * width * work.pairs)
    clips += work.tokens * 2 * (patch_width + PLACE_DIM) * width
    # The poolers, and in each multimodal block: keys and values of all tokens of clips, or of what was gathered.
    gathered = config.generative_queries * work.segments or work.tokens
    pooled = 2 * 2 * width**2 * (gathered + (work.tokens if config.generative_queries else 0))
    crossed = config.multimodal * 2 * 2 * width**2 * (gathered + words)
    crossed += config.multimodal * 4 * width * work.text_pairs
    texts = (config.unimodal + config.multimodal) * (words * (attention + feed) + 2 * width * work.text_squares)
    return float(clips + pooled + crossed + texts + words * _spelled(width, config.local_width))


def _spelled(width: int, local: int) -> int:
    """Returns the FLOPs of writing one token."""
    slot = 2 * local * (4 * local + 8 * local + SLOT_VALUES)
    return BYTES_PER_TOKEN * (2 * width * local + slot)
