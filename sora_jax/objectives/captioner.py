"""The captioner's objective over a pack: to write the captions of its clips, and to tell which belongs to which.

Shapes: B rows, S segments, K text tokens, E width of embeddings, I = B S segments of a batch.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from sora_jax.core.errors import UserError
from sora_jax.core.mean import Mean
from sora_jax.data.packing.expansion_pairs import ExpansionPairs
from sora_jax.diffusion import known
from sora_jax.models.caption_tokens import CaptionTexts, digest_captions, is_end, with_end
from sora_jax.models.captioner import Captioner, CaptionFeatures, CaptionScores, ClipFeatures
from sora_jax.models.text_to_video import Pack

CONTRASTS = ("softmax", "sigmoid")
# Of the offset of pairs in the sigmoid loss at first, when nearly all pairs are none (arXiv 2303.15343, section 3.1).
_SIGMOID_OFFSET = -10.0
# Similarities are never multiplied by more, as in CLIP (arXiv 2103.00020, section 2.5).
_LARGEST_SCALE = 100.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionerLossConfig:
    """How the captioner is trained.

    Attributes:
      caption: Weight of the captioning loss, at least 0.
      contrastive: Weight of the contrastive loss, at least 0.
      temperature: That of the contrastive loss at first, which is learned; over 0.
      contrast: One of `CONTRASTS`.
      word_dropout: Share of the text tokens before the one that is foretold that are not seen, in [0, 1): what comes
        next is then told from the clip, and not from which words usually follow (arXiv 1511.06349, section 3.3).
      token_dropout: Share of the latent tokens of clips that are not seen, in [0, 1); None: all are. What is learnt of
        few clips, or of captions that are wrong here and there, then holds for others. Such a token is zero, the mean
        of latents, and stays in its place, unlike in FLIP (arXiv 2212.00794), which leaves it out to save time.
      expand_share: Of what is drawn, the share of `data.packing.expansion_pairs`, in [0, 1); None: none.
    """

    caption: float
    contrastive: float
    temperature: float
    contrast: str
    word_dropout: float
    token_dropout: float | None
    expand_share: float | None

    def __post_init__(self):
        if min(self.caption, self.contrastive) < 0 or self.caption + self.contrastive == 0:
            raise UserError(
                f"captioner_loss: caption {self.caption} and contrastive {self.contrastive} are weights of at least 0, "
                "and not both 0; 2 and 1 are usual"
            )
        if self.temperature <= 0:
            raise UserError(f"captioner_loss: temperature {self.temperature} must be over 0; 0.07 is usual")
        if not 0 <= self.word_dropout < 1:
            raise UserError(f"captioner_loss: word_dropout {self.word_dropout} is outside [0, 1); 0.3 is usual")
        if not 0 <= (self.token_dropout or 0.0) < 1:
            raise UserError(f"captioner_loss: token_dropout {self.token_dropout} is outside [0, 1); 0.5 is usual")
        if self.contrast not in CONTRASTS:
            raise UserError(f"captioner_loss: contrast {self.contrast!r} is none of {', '.join(CONTRASTS)}")
        if not 0 <= (self.expand_share or 0.0) < 1:
            raise UserError(f"captioner_loss: expand_share {self.expand_share} is outside [0, 1); 0.15 is usual")

    def pairs(self) -> ExpansionPairs | None:
        """Returns the texts without a clip that are drawn beside clips; None where there are none."""
        return ExpansionPairs(share=self.expand_share) if self.expand_share else None


def make_objective(
    config: CaptionerLossConfig, *, dtype: jnp.dtype
) -> Callable[[Captioner, Pack, jax.Array], tuple[Mean, dict[str, Mean]]]:
    """Returns the objective `(captioner, pack, key) -> (loss, metrics)`; the key draws what is not seen.

    The captioning loss is cross-entropy in symbols (bytes, and where a word ends), summed over a text token, mean over
    tokens, in nats. What a pack says in `prompt_BS`, int32, is given: so many tokens at the beginning of a segment's
    text, START among them, carry no loss; 1 where a pack says nothing. A segment without a word has no caption, and
    one without latent tokens is text alone: it is written, not compared. What is given is always seen.

    The contrastive loss is over all pairs of a batch, not of several whose gradients are accumulated. Clips with equal
    captions belong to each of them. Both losses are 0 at best. `dtype` is that of the computation.
    """

    def objective(model: Captioner, pack: Pack, key: jax.Array) -> tuple[Mean, dict[str, Mean]]:
        segment_BL, segments, given_BS = pack["segment_BL"], pack["grid_BS3"].shape[1], pack.get("prompt_BS")
        texts = with_end(pack, segments)
        features = model.encode(pack | _seen(pack["tokens_BLP"], key, config.token_dropout), dtype)
        read = model.read(_dropped(texts, key, config.word_dropout, given_BS), segments, dtype)
        scores = model.score(texts, read.states_BKD, features)
        worded_BS = known.count_tokens(pack["text_segment_BK"], segments) > 1
        written, metrics = _captioning(scores, texts, worded_BS, given_BS)
        paired_BS = worded_BS & (known.count_tokens(segment_BL, segments) > 0)
        compared = _contrastive(model, features, read, digest_captions(texts, segments), paired_BS, config)
        loss = config.caption * written.value() + config.contrastive * compared.value()
        fill = Mean.of((segment_BL > 0).astype(jnp.float32))
        metrics |= {"caption": written, "contrastive": compared, "fill": fill}
        return Mean(loss * written.weight, written.weight), metrics

    return objective


def _seen(tokens_BLP: jax.Array, key: jax.Array, share: float | None) -> dict[str, jax.Array]:
    """Returns the tokens of clips, a share of them zero."""
    if not share:
        return {}
    lost_BL = jax.random.bernoulli(jax.random.fold_in(key, 1), share, tokens_BLP.shape[:2])
    return {"tokens_BLP": jnp.where(lost_BL[..., None], 0, tokens_BLP)}


def _dropped(texts: CaptionTexts, key: jax.Array, share: float, given_BS: jax.Array | None) -> CaptionTexts:
    """Returns captions in which a share of the words looks like START; END, of which texts are known, stays.

    So does what is given.
    """
    if not share:
        return texts
    lost_BK = jax.random.bernoulli(key, share, texts.segment_BK.shape) & ~is_end(texts.text_BKQ)
    if given_BS is not None:
        lost_BK &= texts.position_BK >= known.per_token(given_BS, texts.segment_BK)
    return texts._replace(text_BKQ=jnp.where(lost_BK[..., None], 0, texts.text_BKQ))


def _captioning(
    scores: CaptionScores, texts: CaptionTexts, worded_BS: jax.Array, prompt_BS: jax.Array | None
) -> tuple[Mean, dict[str, Mean]]:
    """Returns the captioning loss and how often whole tokens are foretold rightly."""
    given_BS = jnp.ones_like(worded_BS, jnp.int32) if prompt_BS is None else prompt_BS
    behind_BK = texts.position_BK >= known.per_token(given_BS, texts.segment_BK)
    wanted_BK = jnp.any(scores.asked_BKQ, axis=-1) & behind_BK & known.per_token(worded_BS, texts.segment_BK)
    weight_BK = wanted_BK.astype(jnp.float32)
    right_BK = jnp.all(scores.best_BKQ | ~scores.asked_BKQ, axis=-1)
    loss = Mean.of(-jnp.sum(scores.log_probability_BKQ, axis=-1), weight_BK)
    return loss, {"tokens_right": Mean.of(right_BK.astype(jnp.float32), weight_BK)}


def _contrastive(
    model: Captioner,
    features: ClipFeatures,
    read: CaptionFeatures,
    digest_BS: jax.Array,
    paired_BS: jax.Array,
    config: CaptionerLossConfig,
) -> Mean:
    """Returns the contrastive loss over the pairs of a batch."""
    # One product of arrays that are spread by rows: what devices exchange are embeddings.
    clip_IE, text_IE = (x.reshape(-1, x.shape[-1]) for x in (features.embedding_BSE, read.embedding_BSE))
    digest_I, paired_I = digest_BS.reshape(-1), paired_BS.reshape(-1)
    both_II = paired_I[:, None] & paired_I
    belong_II = both_II & (digest_I[:, None] == digest_I)
    scale = jnp.minimum(jnp.exp(model.log_scale[...]) / config.temperature, _LARGEST_SCALE)
    scores_II = scale * jnp.einsum("IE,JE->IJ", clip_IE, text_IE, precision="highest")
    weight_I = paired_I.astype(jnp.float32)
    if config.contrast == "sigmoid":
        sign_II = jnp.where(belong_II, 1.0, -1.0)
        pairs_II = -jax.nn.log_sigmoid(sign_II * (scores_II + _SIGMOID_OFFSET + model.offset[...]))
        return Mean.of(jnp.sum(jnp.where(both_II, pairs_II, 0.0), axis=-1), weight_I)
    loss_I = 0.5 * (_divergence(scores_II, belong_II, both_II) + _divergence(scores_II.T, belong_II.T, both_II.T))
    return Mean.of(loss_I, weight_I)


def _divergence(scores_IJ: jax.Array, belong_IJ: jax.Array, both_IJ: jax.Array) -> jax.Array:
    """Returns, of each first, how far the softmax over seconds is from one that is even over those that belong to it.

    The Kullback-Leibler divergence, float32 (I,), in nats; 0 where nothing belongs.
    """
    log_IJ = jax.nn.log_softmax(jnp.where(both_IJ, scores_IJ, -1e30), axis=-1)
    count_I = jnp.maximum(jnp.sum(belong_IJ, axis=-1), 1).astype(jnp.float32)
    cross_I = -jnp.sum(jnp.where(belong_IJ, log_IJ, 0.0), axis=-1) / count_I
    return jnp.where(jnp.any(belong_IJ, axis=-1), cross_I - jnp.log(count_I), 0.0)
