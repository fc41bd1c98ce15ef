"""Model FLOPs of a training step over packed rows: what the mathematics asks for, not what a machine happens to do.

Padding, blocks that a mask hides, dead text slots and recomputation count nothing, so a faster way to the same numbers
raises the rate and never the count. A multiply-add is two FLOPs; norms, softmax and other elementwise work are left
out, as is usual (PaLM, arXiv 2204.02311, appendix B).

Letters: B rows, L tokens of a row, K text tokens and M image tokens of a row, S segments, n tokens, m text tokens and
i image tokens of one segment.
"""

import dataclasses
from typing import Protocol

import numpy as np

from sora_jax.models.place import PLACE_DIM
from sora_jax.models.transformer_config import TransformerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What a batch of packed rows holds.

    Attributes:
      tokens: Sum of n.
      text_tokens: Sum of m.
      segments: Their number.
      pairs: Sum of n², over which self-attention goes; less where clips beside see themselves alone.
      text_pairs: Sum of n m, over which cross-attention goes; then without the tokens of clips beside.
      text_squares: Sum of m², over which the text encoder goes.
      image_tokens: Sum of i.
      image_pairs: Sum of n i, over which attention to images goes.
    """

    tokens: int
    text_tokens: int
    segments: int
    pairs: int
    text_pairs: int
    text_squares: int
    image_tokens: int
    image_pairs: int

    def __add__(self, other: "Work") -> "Work":
        mine, others = dataclasses.asdict(self), dataclasses.asdict(other)
        return Work(**{name: mine[name] + others[name] for name in mine})


NO_WORK = Work(**dict.fromkeys((field.name for field in dataclasses.fields(Work)), 0))


def work_of(
    segment_BL: np.ndarray,
    text_segment_BK: np.ndarray,
    image_segment_BM: np.ndarray | None = None,
    *,
    alone_BL: np.ndarray | None = None,
) -> Work:
    """Returns what the rows of a pack hold; int32 segments, 0 for padding; None where no clip has an image.

    Tokens of a group of `alone_BL` (int32, 0: of none) see this alone, and neither text nor image.
    """
    if image_segment_BM is None:
        image_segment_BM = np.zeros((len(segment_BL), 1), np.int32)
    arrays = (segment_BL, text_segment_BK, image_segment_BM)
    slots = 1 + max(int(array.max(initial=0)) for array in arrays)
    n_BS, m_BS, i_BS = (_counts(array, slots) for array in arrays)
    seeing_BS, pairs_alone = n_BS, 0
    if alone_BL is not None:
        seeing_BS = _counts(np.where(alone_BL > 0, 0, segment_BL), slots)
        pairs_alone = int((_counts(alone_BL, 1 + int(alone_BL.max(initial=0))) ** 2).sum())
    return Work(
        tokens=int(n_BS.sum()),
        text_tokens=int(m_BS.sum()),
        segments=int(np.count_nonzero(n_BS)),
        pairs=int((seeing_BS * n_BS).sum()) + pairs_alone,
        text_pairs=int((seeing_BS * m_BS).sum()),
        text_squares=int((m_BS**2).sum()),
        image_tokens=int(i_BS.sum()),
        image_pairs=int((seeing_BS * i_BS).sum()),
    )


def _counts(segment_BL: np.ndarray, slots: int) -> np.ndarray:
    """Returns the tokens of each segment of each row, int64 (B, slots - 1)."""
    rows = np.arange(len(segment_BL))[:, None] * slots
    counts = np.bincount((rows + segment_BL).ravel(), minlength=len(segment_BL) * slots)
    return counts.reshape(-1, slots)[:, 1:].astype(np.int64)


class TextCost(Protocol):
    """What a text encoder adds to a step."""

    @property
    def width(self) -> int:
        """Of the vectors that it gives the transformer, one for each text token."""
        ...

    def flops(self, work: Work) -> float:
        """Returns the FLOPs of one forward pass of what is trained of it; 0 where states are stored."""
        ...


def step_flops(
    config: TransformerConfig, text: TextCost, *, patch_width: int, work: Work, trained: float = 1.0
) -> float:
    """Returns the model FLOPs of one training step, forward and backward, of the transformer and its text encoder.

    The backward pass multiplies by the transpose of each factor of a product of the forward pass, but asks for no
    gradient of weights that are frozen: the share `trained` of the weights is not.
    """
    forward = transformer_flops(config, text_dim=text.width, patch_width=patch_width, work=work) + text.flops(work)
    return 3 * forward - (1 - trained) * (forward - attention_flops(config, work))


def attention_flops(config: TransformerConfig, work: Work) -> float:
    """Returns the FLOPs of attention, which multiplies with no weights, in one forward pass."""
    # The zeros that a text is padded with are one more key for each token.
    padding = work.tokens if config.text_pad_to is not None else 0
    return float(config.depth * 4 * config.width * (work.pairs + work.text_pairs + work.image_pairs + padding))


def transformer_flops(config: TransformerConfig, *, text_dim: int, patch_width: int, work: Work) -> float:
    """Returns the FLOPs of one forward pass of the transformer."""
    width = config.width
    token = 2 * (4 * width**2) + 2 * (2 * width**2) + 2 * (2 * width * config.mlp_width)
    text_token = 2 * (2 * width**2)
    # An image token costs a block what a text token does: a key and a value.
    beside = work.text_tokens + work.image_tokens
    blocks = config.depth * (work.tokens * token + beside * text_token) + attention_flops(config, work)

    ends = work.tokens * 2 * ((2 * patch_width + config.given_width) * width)
    text = work.text_tokens * 2 * (text_dim * width + width**2)
    # Two noise levels a segment: its own, and that of its known tokens.
    levels = 2 * work.segments * 2 * (config.frequency_dim * width + width**2 + 6 * width**2)
    if config.pooled_text:
        levels += work.segments * 2 * text_dim * width
    place = 0
    if config.place_features:
        place = work.tokens * 2 * (2 * PLACE_DIM * width + width**2) + work.segments * 2 * text_dim * width
    image = 0
    if config.image_dim is not None:
        image = work.image_tokens * 2 * (config.image_dim**2 + config.image_dim * width)
    return float(blocks + ends + text + image + levels + place)
