"""The captioner's objective: what carries loss, which pairs belong together, and that it is learnt."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sora_jax.core.errors import UserError
from sora_jax.core.tree import abstract_model, merge_model
from sora_jax.data.caption_tokens import MARK
from sora_jax.models.captioner import CaptionFeatures, CaptionScores, ClipFeatures
from sora_jax.objectives.captioner import CaptionerLossConfig, make_objective
from tests.models.test_captioner import CLIPS, CONFIG, build, make_pack, params_of

KEY = jax.random.key(0)


def config(**changes):
    return CaptionerLossConfig(
        **{
            "caption": 2.0,
            "contrastive": 1.0,
            "temperature": 0.07,
            "contrast": "softmax",
            "word_dropout": 0.0,
            "token_dropout": None,
        }
        | {"expand_share": None}
        | changes
    )


class Stub:
    """Gives each slot log-probability -1 and the embeddings that it is told."""

    log_scale = offset = np.zeros(1, np.float32)

    def __init__(self, clips_BSE, texts_BSE):
        self.clips_BSE, self.texts_BSE = (jnp.asarray(x, jnp.float32) for x in (clips_BSE, texts_BSE))

    def encode(self, pack, dtype):
        return ClipFeatures(None, self.clips_BSE)

    def read(self, texts, segments, dtype):
        return CaptionFeatures(None, self.texts_BSE)

    def score(self, texts, states_BKD, features):
        asked = jnp.asarray((texts.segment_BK > 0) & (texts.position_BK > 0))[..., None] & (jnp.arange(8) < 2)
        return CaptionScores(jnp.where(asked, -1.0, 0.0), asked, asked)


def run(pack, clips=None, texts=None, **changes):
    nothing = np.eye(3)[None].repeat(len(pack["segment_BL"]), 0)
    stub = Stub(nothing if clips is None else clips, nothing if texts is None else texts)
    return make_objective(config(**changes), dtype=jnp.float32)(stub, pack, KEY)


def test_words_that_are_hidden_are_foretold_all_the_same():
    seen = {}

    class Listening(Stub):
        def read(self, texts, segments, dtype):
            seen["read"] = texts
            return super().read(texts, segments, dtype)

        def score(self, texts, states_BKD, features):
            seen["scored"] = texts
            return super().score(texts, states_BKD, features)

    pack, nothing = make_pack(CLIPS), np.eye(3)[None].repeat(2, 0)
    objective = make_objective(config(word_dropout=0.6), dtype=jnp.float32)
    _, metrics = objective(Listening(nothing, nothing), pack, KEY)
    read, whole = (np.asarray(seen[name].text_BKQ) for name in ("read", "scored"))
    ends, words = whole[..., 0] == MARK, (whole[..., 0] > 0) & (whole[..., 0] != MARK)
    assert (read[ends] == whole[ends]).all(), "a text is known by its END"
    hidden = ~read.any(axis=-1)
    assert 0 < (hidden & words).sum() < words.sum()
    assert (read[~hidden] == whole[~hidden]).all()
    assert float(metrics["caption"].weight) == 12


def test_tokens_of_clips_that_are_hidden_are_zero_and_in_their_place():
    seen = {}

    class Looking(Stub):
        def encode(self, pack, dtype):
            seen.update(pack)
            return super().encode(pack, dtype)

    nothing = np.eye(3)[None].repeat(2, 0)
    pack = make_pack(CLIPS)
    pack["tokens_BLP"] = jnp.ones_like(pack["tokens_BLP"])
    for share, told in ((0.5, True), (None, False)):
        make_objective(config(token_dropout=share), dtype=jnp.float32)(Looking(nothing, nothing), pack, KEY)
        hidden_BL = np.asarray(seen["tokens_BLP"] == 0).all(axis=-1)
        assert (np.asarray(seen["tokens_BLP"])[~hidden_BL] == 1).all()
        assert (0 < hidden_BL.mean() < 1) == told
        assert (seen["segment_BL"] == pack["segment_BL"]).all()


def test_every_token_behind_the_prompt_counts_once():
    pack = make_pack(CLIPS)
    loss, metrics = run(pack, contrastive=0.0)
    # Words and END of each caption: 4 + 2 + 3, and of the second row 3 for a word of nine bytes.
    assert float(metrics["caption"].weight) == 12
    assert float(loss.value()) == pytest.approx(2.0 * 2.0)
    assert float(metrics["tokens_right"].value()) == 1
    prompted = {**pack, "prompt_BS": jnp.asarray([[1, 1, 2], [1, 1, 1]], jnp.int32)}
    assert float(run(prompted)[1]["caption"].weight) == 11
    # Without a word there is no caption, not one that is empty.
    assert float(run(make_pack([[((1, 1, 1), "")]]))[1]["caption"].weight) == 0


def test_equal_captions_belong_to_each_other_and_texts_without_clips_are_not_compared():
    pack = make_pack([[((1, 1, 1), "red"), ((1, 1, 1), "blue"), ((0, 0, 0), "expand:")], [((1, 1, 1), "red")]])
    clips = np.asarray([[[1, 0], [0, 1], [1, 0]], [[1, 0], [9, 9], [9, 9]]])
    _, metrics = run(pack, clips, clips)
    assert float(metrics["contrastive"].weight) == 3
    assert float(metrics["contrastive"].value()) == pytest.approx(0.0, abs=1e-4)
    mistaken = run(pack, clips, clips[:, ::-1] * 0 + clips[:1, 1:2])[1]["contrastive"].value()
    assert float(mistaken) > 0.1


def test_the_sigmoid_loss_is_that_of_each_pair():
    pack = make_pack([[((1, 1, 1), "red"), ((1, 1, 1), "blue")]])
    clips = np.asarray([[[1.0, 0], [0, 1], [5, 5]]])
    found = run(pack, clips, clips, contrast="sigmoid", temperature=0.1)[1]["contrastive"]
    same, other = 10.0 - 10.0, -10.0  # similarity over temperature, and the offset at first
    assert float(found.value()) == pytest.approx(np.log1p(np.exp(-same)) + np.log1p(np.exp(other)), rel=1e-5)
    assert float(found.weight) == 2


@pytest.mark.slow
def test_captions_are_learnt():
    pack = make_pack([[((2, 2, 2), "a red circle"), ((1, 2, 2), "blue")], [((3, 1, 2), "wandering")]])
    objective, (structure, _, _) = make_objective(config(), dtype=jnp.float32), abstract_model(build)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state):
        def loss(params):
            found, metrics = objective(merge_model(structure, params), pack, KEY)
            return found.value(), metrics

        (_, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, metrics

    params = jax.tree.map(functools.partial(jnp.asarray, dtype=jnp.float32), params_of(CONFIG))
    state = optimizer.init(params)
    for _ in range(150):
        params, state, metrics = step(params, state)
    assert float(metrics["caption"].value()) < 0.1
    assert float(metrics["contrastive"].value()) < 0.05
    assert float(metrics["tokens_right"].value()) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"caption": -1.0}, "weights of at least 0"),
        ({"caption": 0.0, "contrastive": 0.0}, "not both 0"),
        ({"temperature": 0.0}, "temperature 0.0 must be over 0"),
        ({"contrast": "hinge"}, "contrast 'hinge' is none of softmax, sigmoid"),
        ({"word_dropout": 1.0}, "word_dropout 1.0 is outside [0, 1)"),
        ({"token_dropout": 1.0}, "token_dropout 1.0 is outside [0, 1)"),
    ],
)
def test_losses_that_are_none_are_refused(change, said):
    with pytest.raises(UserError) as caught:
        config(**change)
    assert said in str(caught.value)
