"""Pairs of texts take the share of draws that is asked for, carry no clip, and say which part is given."""

import numpy as np
import pytest

from sora_jax.data.caption_tokens import CAPTION_TOKENIZER, read_tokens, spell_words
from sora_jax.data.packing.expansion_pairs import ExpansionPairs
from sora_jax.data.packing.pipeline import PackingConfig, RowDataset
from sora_jax.data.prompt_guard import find_losses
from sora_jax.data.shards.prepared import Prepared, PreparedSet, ShardWriter
from tests.data.packing.test_pipeline import HEADER, PATCH, TIME_RATE

COLOURS = ("red", "blue", "green", "cyan", "purple", "yellow")


def make_rows(prepared, share):
    pairs = ExpansionPairs(share=share) if share else None
    packing = PackingConfig(tokens=64, text_tokens=60, segments=8, rows=4, window=48)
    options = {"patch": PATCH, "time_rate": TIME_RATE, "tokenizer": CAPTION_TOKENIZER, "seed": 0}
    return RowDataset(prepared, packing, **options, pairs=pairs)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("prepared")
    with ShardWriter(directory, header=HEADER, tokenizer=CAPTION_TOKENIZER, records_per_shard=15) as writer:
        for number, colour in enumerate(COLOURS):
            writer.add(
                Prepared(
                    latent_THWC=np.full((1, 4, 4, 3), 1.0 + number, np.float32),
                    fps=8.0,
                    captions=(f"a {colour} circle", f"a small {colour} circle on a dark background"),
                    source_id=colour,
                    pixel_shape=(1, 32, 32),
                    trimmed_frames=0,
                )
            )
    return PreparedSet(directory)


def segments_of(row):
    """Yields (tokens of the clip, tokens given, text given, text behind it) of each segment."""
    for slot in range(int((row["sample_BS"] >= 0).sum())):
        text_KQ, given = row["text_BKQ"][row["text_segment_BK"] == slot + 1], int(row["prompt_BS"][slot])
        tokens = int((row["segment_BL"] == slot + 1).sum())
        assert (tokens == 0) == (row["grid_BS3"][slot].tolist() == [0, 0, 0])
        yield tokens, given, read_tokens(text_KQ[1:given]), read_tokens(text_KQ[given:])


def test_a_pair_is_a_prompt_and_the_caption_that_keeps_it(prepared):
    rows = make_rows(prepared, 0.4)
    found = [segment for number in range(40) for segment in segments_of(rows[number])]
    pairs = [segment for segment in found if segment[0] == 0]
    assert len(found) > 150
    assert len(pairs) / len(found) == pytest.approx(0.4, abs=0.1)
    prompts = set()
    for _, given, asked, text in pairs:
        task, prompt = asked.split(" ", 1)
        assert (task, given) == ("expand:", len(spell_words(asked)))
        assert not find_losses(prompt, text)
        assert text.startswith("a small ")
        prompts.add(prompt)
    stored = {caption for index in range(len(prepared)) for caption in prepared[index].captions}
    assert prompts & stored
    assert prompts - stored, "terse ones too"
    assert {given for tokens, given, *_ in found if tokens} == {1}


def test_rows_without_pairs_are_as_they_were(prepared):
    plain = make_rows(prepared, 0.0)
    assert "prompt_BS" not in plain[0]
    assert "expand_share" not in plain.fingerprint()
    assert make_rows(prepared, 0.4).fingerprint()["expand_share"] == 0.4
