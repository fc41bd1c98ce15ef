"""A clip's caption is its own, whatever else is described, and is what the captioner says one token after the other."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.core.errors import UserError
from sora_jax.core.tree import abstract_model, merge_model
from sora_jax.data.caption_tokens import CAPTION_TOKENIZER, spell_words
from sora_jax.data.packing.packs import PackLayout
from sora_jax.data.packing.plan import Budget
from sora_jax.generate.captioning import Describer, EncodedClip, PackWriter
from sora_jax.generate.decoding import CaptioningConfig
from sora_jax.models import caption_tokens
from tests.models.test_captioner import CONFIG, build, params_of

S, MOST = 3, 6
LAYOUT = PackLayout(
    budget=Budget(tokens=16, text_tokens=12, segments=S),
    patch=(1, 1, 1),
    channels=3,
    temporal_stride=4,
    time_rate=2.0,
    tokenizer=CAPTION_TOKENIZER,
)
STRUCTURE = abstract_model(functools.partial(build, config=CONFIG))[0]


def describer(method="greedy", writer=PackWriter):
    config = CaptioningConfig(method=method, beams=3, length_penalty=0.6, temperature=1.0, top_p=0.9, no_repeat=0)
    return Describer(STRUCTURE, LAYOUT, rows=2, max_tokens=MOST, config=config, dtype=jnp.float32, writer=writer)


def clip(number, shape):
    latent_THWC = np.random.default_rng(number).normal(size=(*shape, 3)).astype(np.float32)
    return EncodedClip(latent_THWC=latent_THWC, fps=8.0)


CLIPS = [clip(number, shape) for number, shape in enumerate([(2, 2, 2), (1, 3, 3), (3, 2, 2), (1, 1, 2), (4, 2, 2)])]


def test_a_caption_depends_on_its_clip_alone():
    describe, params = describer(), params_of(CONFIG)
    together = describe(params, CLIPS)
    assert len({one.text for one in together}) > 1
    for one, alone in zip(CLIPS, together, strict=True):
        (found,) = describe(params, [one])
        assert (found.text, found.whole) == (alone.text, alone.whole)
        assert found.score == pytest.approx(alone.score, abs=1e-4)
    begun = describe(params, CLIPS[:2], prefix="a red")
    assert [one.text for one in begun] != [one.text for one in together[:2]]
    # A caption from START alone, with a prefix of which nothing is left.
    assert describe(params, CLIPS[:1], prefix=" ")[0].text == together[0].text


@pytest.mark.slow  # the whole model, step by step
def test_the_score_is_what_the_whole_model_says_of_the_caption():
    params = params_of(CONFIG)
    written = describer()(params, CLIPS[:1])[0]
    row, words_KQ = LAYOUT.row(), spell_words(written.text)
    latent_THWC = CLIPS[0].latent_THWC
    grid, tokens_LP = latent_THWC.shape[:3], latent_THWC.reshape(-1, 3)
    row.put(sample=0, grid=grid, fps=8.0, text={"text_BKQ": words_KQ}, tokens_LP=tokens_LP)
    pack = {name: jnp.asarray(value[None]) for name, value in row.arrays.items()}
    model = merge_model(STRUCTURE, params)
    texts = caption_tokens.with_end(pack, S)
    scores = model.score(texts, model.read(texts, S, jnp.float32).states_BKD, model.encode(pack, jnp.float32))
    # START is given; END was written where the caption is whole.
    there = slice(1, len(words_KQ) + written.whole)
    of_tokens_K = np.asarray(scores.log_probability_BKQ[0, there].sum(axis=-1))
    assert len(of_tokens_K) > 1
    assert written.score == pytest.approx(of_tokens_K.mean(), abs=1e-3)


def test_a_clip_that_no_row_holds_is_refused():
    with pytest.raises(UserError, match="a clip of 32 tokens fits no row of 16"):
        describer()(params_of(CONFIG), [clip(0, (2, 4, 4))])
