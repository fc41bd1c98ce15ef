"""Wan's transformer against diffusers' (marker parity): names, parts, and the same predictions from the same files."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from sora_jax.core.rng import Rngs
from sora_jax.core.tree import abstract_model, merge_model
from sora_jax.models.block import Block, Context, Sight
from sora_jax.models.block_attention import Beside
from sora_jax.models.interop.wan import load_wan, save_wan, to_wan
from sora_jax.models.interop.wan_files import describe_wan
from sora_jax.models.interop.wan_shape import WanShape
from sora_jax.models.transformer import Transformer
from sora_jax.models.transformer_config import TransformerConfig
from sora_jax.nn import rope
from sora_jax.nn.activation import gelu
from sora_jax.nn.embed import sinusoid
from sora_jax.video import patches, shapes

pytestmark = pytest.mark.parity

HEADS, HEAD_DIM, CHANNELS, TEXT_DIM, IMAGE_DIM = 2, 12, 16, 32, 20
PATCH, TEXT_TOKENS, IMAGE_TOKENS = (1, 2, 2), 512, 5
FOREIGN = {
    "patch_size": PATCH,
    "num_attention_heads": HEADS,
    "attention_head_dim": HEAD_DIM,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "text_dim": TEXT_DIM,
    "freq_dim": 256,
    "ffn_dim": 32,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}
FRAME = {
    "in_channels": 2 * CHANNELS + 4,
    "image_dim": IMAGE_DIM,
    "added_kv_proj_dim": HEADS * HEAD_DIM,
    "pos_embed_seq_len": None,
}
# Text alone; a first frame; a first and a last one; a first one without an image's tokens.
MODELS = {
    "text": FOREIGN,
    "frame": FOREIGN | FRAME,
    "frames": FOREIGN | FRAME | {"pos_embed_seq_len": 2 * IMAGE_TOKENS},
    "latent": FOREIGN | {"in_channels": 2 * CHANNELS + 4},
}
# Odd numbers of tokens along each axis.
VIDEO, IMAGE = (3, 6, 10), (1, 2, 6)


@dataclasses.dataclass(frozen=True)
class Clip:
    """One segment: noise, what is given beside it, its true text, tokens of images, timestep, known leading frames."""

    latent_THWC: np.ndarray
    given_THWC: np.ndarray | None
    text_KE: np.ndarray
    image_ME: np.ndarray | None
    timestep: float
    known_frames: int

    @property
    def grid(self):
        return shapes.token_grid(self.latent_THWC.shape[:3], PATCH)

    @property
    def known_L(self):
        """Whether each token is known, in raster order."""
        return shapes.positions(self.grid, 1.0)[:, 0] < self.known_frames


def clip(kind, size, timestep, *, text, seed=0, known_frames=0):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    foreign = MODELS[kind]
    images = 1 if foreign.get("pos_embed_seq_len") is None else 2
    given = foreign["in_channels"] - CHANNELS
    return Clip(
        latent_THWC=normal(*size, CHANNELS),
        given_THWC=normal(*size, given) if given else None,
        text_KE=normal(text, TEXT_DIM),
        image_ME=normal(images * IMAGE_TOKENS, IMAGE_DIM) if foreign.get("image_dim") else None,
        timestep=timestep,
        known_frames=known_frames,
    )


@dataclasses.dataclass(frozen=True)
class Pair:
    """A torch model and ours, of the files that it saved."""

    torch: Any
    config: TransformerConfig
    structure: Any
    params: dict
    shape: WanShape
    predict: Callable
    folder: Path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Returns a function to a pair of models of a kind; in none has a parameter a special value."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    made = {}

    def make(kind):
        torch.manual_seed(0)
        model = diffusers.WanTransformer3DModel(**MODELS[kind])
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1 or len(parameter) == 1:  # biases, norms, modulation, places: zeros and ones
                    parameter.add_(0.2 * torch.randn_like(parameter))
        folder = tmp_path_factory.mktemp(kind)
        model.save_pretrained(folder)
        shape = describe_wan(folder)
        config = shape.config(time_rate=1.0, remat="none")
        structure, expected, _ = abstract_model(
            lambda key: Transformer(config, patch_width=shape.patch_width, text_dim=TEXT_DIM, rngs=Rngs(key))
        )
        params = load_wan(folder, expected)
        predict = jax.jit(lambda params, **inputs: merge_model(structure, params)(**inputs).tokens_BLP)
        return Pair(model.eval(), config, structure, params, shape, predict, folder)

    def pair(kind):
        if kind not in made:
            made[kind] = make(kind)
        return made[kind]

    return pair


def theirs(model, one):
    """Returns torch's prediction for one clip alone, its text padded with zeros as Wan's pipeline does."""
    torch = pytest.importorskip("torch")
    timestep = torch.tensor([one.timestep])
    if one.known_frames:
        timestep = torch.from_numpy(np.where(one.known_L, 0.0, one.timestep).astype(np.float32))[None]
    both = [one.latent_THWC] if one.given_THWC is None else [one.latent_THWC, one.given_THWC]
    text_KE = np.pad(one.text_KE, ((0, TEXT_TOKENS - len(one.text_KE)), (0, 0)))
    image = one.image_ME
    if image is not None:
        # The two images of a clip come as two of a batch.
        image = torch.from_numpy(image.reshape(-1, IMAGE_TOKENS, IMAGE_DIM))
    with torch.no_grad():
        output = model(
            hidden_states=torch.from_numpy(np.concatenate(both, axis=-1).transpose(3, 0, 1, 2)[None]),
            timestep=timestep,
            encoder_hidden_states=torch.from_numpy(text_KE[None]),
            encoder_hidden_states_image=image,
        ).sample
    return output[0].numpy().transpose(1, 2, 3, 0)


def row_of(clips, *, length, text, images):
    """Returns the inputs of one row that holds the clips, one after the other, with padding behind."""
    segments = len(clips)
    row = {
        "tokens_BLP": np.zeros((1, length, 4 * CHANNELS), np.float32),
        "position_BL3": np.zeros((1, length, 3), np.float32),
        "segment_BL": np.zeros((1, length), np.int32),
        "level_BL": np.zeros((1, length), np.int32),
        "levels_BG": np.zeros((1, 2 * segments), np.float32),
        "extent_BL3": np.ones((1, length, 3), np.float32),
        "text_BKE": np.zeros((1, text, TEXT_DIM), np.float32),
        "text_segment_BK": np.zeros((1, text), np.int32),
    }
    if clips[0].given_THWC is not None:
        row["given_BLC"] = np.zeros((1, length, 4 * clips[0].given_THWC.shape[-1]), np.float32)
    if clips[0].image_ME is not None:
        row["image_BME"] = np.zeros((1, images, IMAGE_DIM), np.float32)
        row["image_segment_BM"] = np.zeros((1, images), np.int32)
    start, words, pixels = 0, 0, 0
    for slot, one in enumerate(clips):
        here = slice(start, start := start + shapes.count(one.grid))
        row["tokens_BLP"][0, here] = patches.patchify(one.latent_THWC, PATCH)
        row["position_BL3"][0, here] = shapes.positions(one.grid, 1.0)
        row["segment_BL"][0, here] = slot + 1
        row["level_BL"][0, here] = slot + segments * one.known_L
        row["levels_BG"][0, slot] = one.timestep / 1000
        there = slice(words, words := words + len(one.text_KE))
        row["text_BKE"][0, there], row["text_segment_BK"][0, there] = one.text_KE, slot + 1
        if one.given_THWC is not None:
            row["given_BLC"][0, here] = patches.patchify(one.given_THWC, PATCH)
        if one.image_ME is not None:
            beside = slice(pixels, pixels := pixels + len(one.image_ME))
            row["image_BME"][0, beside], row["image_segment_BM"][0, beside] = one.image_ME, slot + 1
    return row


def ours(pair, clips, *, length=66, text=544, images=24):
    """Returns our prediction for each clip, all packed in one row."""
    row_LP = np.asarray(pair.predict(pair.params, **row_of(clips, length=length, text=text, images=images)))[0]
    found, start = [], 0
    for one in clips:
        here = slice(start, start := start + shapes.count(one.grid))
        found.append(patches.unpatchify(row_LP[here], grid=one.grid, patch=PATCH, channels=CHANNELS))
    return found


def assert_same(found, expected):
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("timestep", [0.0, 3.7, 999.0])
@pytest.mark.parametrize("size", [VIDEO, IMAGE])
def test_one_clip_agrees(pairs, size, timestep):
    pair = pairs("text")
    one = clip("text", size, timestep, text=7)
    (found,) = ours(pair, [one])
    assert_same(found, theirs(pair.torch, one))


@pytest.mark.parametrize("words", [(1, 7), (7, 512), (512, 1)])
@pytest.mark.parametrize("kind", MODELS)
def test_packed_clips_agree_each_with_itself_alone_and_all_its_zeros(pairs, kind, words):
    pair = pairs(kind)
    clips = [
        clip(kind, VIDEO, 999.0, text=words[0], seed=1),
        clip(kind, IMAGE, 250.0, text=words[1], seed=2),
    ]
    for one, found in zip(clips, ours(pair, clips), strict=True):
        assert_same(found, theirs(pair.torch, one))


def test_known_frames_agree_with_timesteps_per_token(pairs):
    pair = pairs("text")
    one = clip("text", VIDEO, 700.0, text=5, seed=3, known_frames=1)
    (found,) = ours(pair, [one])
    assert_same(found, theirs(pair.torch, one))
    different = theirs(pair.torch, dataclasses.replace(one, known_frames=0))
    assert np.abs(found - different).max() > 1e-2


@pytest.mark.parametrize("kind", MODELS)
def test_names_and_bytes_are_theirs_in_both_namings(pairs, kind, tmp_path):
    torch = pytest.importorskip("torch")
    single_file = pytest.importorskip("diffusers.loaders.single_file_utils")
    pair = pairs(kind)
    public = {name: value.numpy() for name, value in pair.torch.state_dict().items()}
    found = to_wan(pair.params, pair.shape)
    original = dataclasses.replace(pair.shape, layout="original")
    (file,) = save_wan(tmp_path / "wan.safetensors", pair.params, original)
    converted = single_file.convert_wan_transformer_to_diffusers(
        {name: torch.from_numpy(value) for name, value in load_file(file).items()}
    )
    converted = {name: value.numpy() for name, value in converted.items()}
    if kind == "frames":  # their converter leaves that name as it is
        converted["condition_embedder.image_embedder.pos_embed"] = converted.pop("img_emb.emb_pos")
    for ours_there in (found, converted):
        assert ours_there.keys() == public.keys()
        for name, value in public.items():
            np.testing.assert_array_equal(ours_there[name], value, err_msg=name)


@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_diffusers_reads_what_we_write(pairs, layout, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    pair = pairs("frame")
    if layout == "diffusers":
        save_wan(tmp_path / "new", pair.params, pair.shape, shard_bytes=50_000)
        model = diffusers.WanTransformer3DModel.from_pretrained(tmp_path / "new")
    else:
        (file,) = save_wan(
            tmp_path / "wan.safetensors", pair.params, dataclasses.replace(pair.shape, layout="original")
        )
        model = diffusers.WanTransformer3DModel.from_single_file(file, config=str(pair.folder))
    for name, value in pair.torch.state_dict().items():
        np.testing.assert_array_equal(model.state_dict()[name], value, err_msg=name)


def close(found, expected, *, atol, rtol=0.0):
    assert np.std(expected.numpy()) > 0.1
    np.testing.assert_allclose(np.asarray(found), expected.numpy(), atol=atol, rtol=rtol)


def test_embeddings_agree(pairs):
    torch = pytest.importorskip("torch")
    pair = pairs("frames")
    embedder = merge_model(pair.structure, pair.params).condition_embedder
    rng = np.random.default_rng(4)
    text, image = (
        rng.normal(size=(1, tokens, width)).astype(np.float32)
        for tokens, width in ((3, TEXT_DIM), (2 * IMAGE_TOKENS, IMAGE_DIM))
    )
    their = pair.torch.condition_embedder
    with torch.no_grad():
        waves = their.timesteps_proj(torch.tensor([0.0, 3.7, 500.0, 999.0]))
        time = their.time_embedder(waves)
        words = their.text_embedder(torch.from_numpy(text))
        pixels = their.image_embedder(torch.from_numpy(image.reshape(2, IMAGE_TOKENS, -1)))
    # Angles up to 999 in float32, whose steps are 6e-5 there.
    close(sinusoid(jnp.array([0.0, 3.7, 500.0, 999.0]), 256), waves, atol=4e-5)
    hidden = jax.nn.silu(embedder.time_in(jnp.asarray(waves.numpy())))
    close(embedder.time_out(hidden), time, atol=1e-7, rtol=1e-6)
    close(embedder.of_text(jnp.asarray(text)), words, atol=2e-7)
    assert embedder.image is not None
    close(embedder.image(jnp.asarray(image), jnp.ones((1, 2 * IMAGE_TOKENS), jnp.int32)), pixels, atol=1e-6)


def test_rotations_are_the_table(pairs):
    torch = pytest.importorskip("torch")
    tables = pairs("text").torch.rope(torch.zeros(1, CHANNELS, 21, 60, 60))
    position_L3 = shapes.positions((21, 30, 30), 1.0)
    cos, sin = rope.rotations(jnp.asarray(position_L3)[None], HEAD_DIM, 10_000.0)
    signed = sin * np.tile([-1.0, 1.0], HEAD_DIM // 2)
    # What cosines of two libraries differ in: the last bit.
    for found, table in ((cos, tables[0]), (signed, tables[1])):
        close(found[0], table[0, :, 0], atol=6e-8)


def test_a_block_and_its_feed_forward_agree(pairs):
    torch = pytest.importorskip("torch")
    pair = pairs("text")
    blocks = {name: value[0] for name, value in pair.params.items() if name.startswith("blocks.")}
    structure, _, _ = abstract_model(lambda key: Block(pair.config, rngs=Rngs(key)))
    block = merge_model(structure, {name.removeprefix("blocks."): value for name, value in blocks.items()})
    rng = np.random.default_rng(5)
    tokens, width = shapes.count(shapes.token_grid(VIDEO, PATCH)), HEADS * HEAD_DIM
    x, text = (rng.normal(size=(1, n, width)).astype(np.float32) for n in (tokens, TEXT_TOKENS))
    modulation = 0.3 * rng.normal(size=(1, 6, width)).astype(np.float32)
    with torch.no_grad():
        their = pair.torch.blocks[0]
        arrays = (torch.from_numpy(one) for one in (x, text, modulation))
        whole = their(*arrays, pair.torch.rope(torch.zeros(1, CHANNELS, *VIDEO)))
        fed = their.ffn(torch.from_numpy(x))
    position = jnp.asarray(shapes.positions(shapes.token_grid(VIDEO, PATCH), 1.0))[None]
    ones = jnp.ones((1, tokens), jnp.int32)
    context = Context(
        modulation_BG6D=jnp.asarray(np.repeat(modulation[:, None], 2, axis=1)),
        level_BL=ones,
        rotation=rope.rotations(position, HEAD_DIM, 10_000.0),
        sight=Sight(segments=1, segment_BL=ones, alone=None),
        text_BKD=jnp.asarray(text),
        text_segment_BK=jnp.ones((1, TEXT_TOKENS), jnp.int32),
        beside=Beside(None, None),
    )
    close(block.mlp_out(gelu(block.mlp_in(jnp.asarray(x)))), fed, atol=1e-7, rtol=1e-6)
    close(block(jnp.asarray(x), context), whole, atol=3e-7, rtol=1e-6)
