"""The survey says what fitting does, clip by clip, and how rows of such clips fill."""

import dataclasses
import re

import numpy as np
import pytest

from sora_jax.data.clips import BadClip, Clip
from sora_jax.data.fitting import ClipBudget
from sora_jax.data.packing.pipeline import PackingConfig
from sora_jax.data.survey import Survey, draw_cut, measures, packing_of, reasons, survey
from sora_jax.data.tokens import BYTE_TOKENIZER
from sora_jax.reports.data_page import write_page

LIMITS = ClipBudget(
    stride=(4, 8, 8),
    min_tokens=4,
    max_tokens=40,
    max_frames=9,
    tokenizer=BYTE_TOKENIZER,
    max_text_tokens=10,
    max_bad_share=0.5,
)
SIZES = [(1, 32, 40), (6, 33, 36), (30, 64, 64), (3, 8, 8), (1, 16, 16)]


class Heap:
    """Grey clips of the sizes above; the last is damaged."""

    def __len__(self):
        return len(SIZES)

    def __getitem__(self, index):
        if index == len(SIZES) - 1:
            raise BadClip("4", "frame 3 is damaged")
        captions = ("a grey clip", "grey")[: 1 + index % 2]
        pixels_THWC = np.full((*SIZES[index], 3), 90, np.uint8)
        # How much more there is in the file is known of the second alone.
        there = 50 if index == 1 else None
        return Clip(pixels_THWC=pixels_THWC, fps=8.0, captions=captions, source_id=str(index), file_frames=there)

    def source_id(self, index):
        return str(index)

    def fingerprint(self):
        return "grey"


@pytest.fixture(scope="module")
def found():
    return survey(Heap(), LIMITS, count=None)


def test_each_clip_is_kept_or_left_out_with_the_reason_of_fitting(found):
    assert [look.source_id for look in found.kept] == ["0", "1", "2"]
    assert [name for name, _ in found.dropped] == ["3", "4"]
    assert reasons(found.dropped) == [
        ("# frames of #x# give # tokens, under min_tokens = #", 1),
        ("frame # is damaged", 1),
    ]
    for look in found.kept:
        fitted = LIMITS.fit(Heap(), int(look.source_id))
        assert look.fitted == fitted.clip.pixels_THWC.shape[:3]
        assert (look.tokens, look.scale, look.trimmed_frames) == (fitted.tokens, fitted.scale, fitted.trimmed_frames)
        assert look.size == SIZES[int(look.source_id)]
        assert look.pictures is not None
        np.testing.assert_array_equal(look.pictures[1], fitted.clip.pixels_THWC[look.fitted[0] // 2])
    assert found.kept[1].trimmed_frames == 1
    assert found.kept[1].cropped == (1, 4)
    assert found.kept[1].cut == pytest.approx(1 - 32 * 32 / (33 * 36))
    assert found.kept[2].scale < 1


def test_some_clips_are_spread_over_the_source():
    some = survey(Heap(), LIMITS, count=2)
    assert [look.source_id for look in some.kept] == ["0"]
    assert [name for name, _ in some.dropped] == ["4"]


def test_only_so_many_keep_pictures():
    few = survey(Heap(), LIMITS, count=None, shown=2)
    assert [look.pictures is not None for look in few.kept] == [False, False, True]


def test_what_is_kept_is_drawn_where_it_is_kept():
    drawn = draw_cut(np.full((40, 60, 3), 90, np.uint8), (32, 48))
    rows, columns = np.nonzero((drawn != 90).any(axis=-1))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 35, 6, 53)
    large = draw_cut(np.full((400, 600, 3), 90, np.uint8), (400, 600))
    assert large.shape == (128, 192, 3)
    assert (large[0] != 90).any(axis=-1).all()


def test_a_square_crop_is_counted_and_drawn():
    class Wide(Heap):
        def __getitem__(self, index):
            pixels_THWC = np.full((1, 40, 64, 3), 90, np.uint8)
            return Clip(pixels_THWC=pixels_THWC, fps=8.0, captions=("wide",), source_id=str(index))

    (look,) = survey(Wide(), dataclasses.replace(LIMITS, square_crop=True), count=1).kept
    assert (look.fitted, look.cropped, look.tokens) == ((1, 40, 40), (0, 24), 25)
    assert look.pictures is not None
    columns = np.nonzero((look.pictures[0] != 90).any(axis=-1))[1]
    assert (columns.min(), columns.max()) == (12, 51)


def test_measures_are_of_clips_and_of_captions(found):
    values = measures(found.kept)
    assert values["cropped, % of the picture"] == [100 * look.cut for look in found.kept]
    assert values["tokens"] == [look.tokens for look in found.kept]
    assert values["used, % of the frames of the file"] == [100 * 5 / 50]
    assert values["frames, as encoded"] == [look.fitted[0] for look in found.kept]
    assert values["duration, s, as encoded"] == [look.fitted[0] / 8 for look in found.kept[1:]], "videos only"
    assert len(values["text tokens of a caption"]) == 1 + 2 + 1


def test_fill_is_that_of_the_rows(found):
    longest = max(look.tokens for look in found.kept)
    packing = PackingConfig(tokens=longest, text_tokens=40, segments=1, rows=4, window=60)
    told = packing_of(found.kept, packing, max_text_tokens=10, seed=0)
    tokens = [look.tokens for look in found.kept]
    assert told["fill"] == pytest.approx(np.mean(tokens) / max(tokens), abs=0.02), "one clip a row"
    assert told["clips_per_row"] == 1
    assert told["rejected"] == 0
    assert told["costliest_row"] > 1


def test_the_page_shows_every_clip_and_every_reason(found, tmp_path):
    write_page(tmp_path / "new" / "page.html", found, {"fill": 0.9}, title="a <heap>")
    page = (tmp_path / "new" / "page.html").read_text()
    assert "a &lt;heap&gt;" in page
    assert page.count("<img") == 2 * len(found.kept)
    assert page.count("0: the same frame as the model will see it") == 1
    assert 'alt=""' not in page
    assert "frame 3 is damaged" in page
    assert "1 rows and 4 columns cropped, 13.8% of the picture" in page
    assert page.count("histogram of") == len(measures(found.kept)) + 1, "and words of captions"
    assert "http" not in page, "it needs no network"


def test_other_captions_stand_beside_those_that_are_there(found, tmp_path):
    after = {"0": ("a wide grey picture", "grey"), "2": ("a wide grey film",)}
    write_page(tmp_path / "page.html", found, {}, title="heap", after=after)
    page = (tmp_path / "page.html").read_text()
    rows = [
        "<td>before</td><td>a grey clip</td>",
        "<td>after</td><td>a wide grey picture</td>",
        "<td>after</td><td>-</td>",
    ]
    assert [page.count(row) for row in rows] == [3, 1, 1]
    assert "<td>clips without a caption</td><td>0.0%</td><td>33.3%</td>" in page
    assert "<td>66.7%</td><td>a wide grey ...</td>" in page
    assert page.count("histogram of words of a caption") == 2


def test_names_and_captions_of_strangers_are_text_on_the_page(found, tmp_path):
    evil = "<script>alert(1)</script>\udcff\x1b[2J\u202e"
    caption = "<img src=x onerror=alert(1)> {x} %s"
    kept = [dataclasses.replace(look, source_id=evil, captions=(caption,)) for look in found.kept]
    dropped, after = [(evil, "is bad")], {evil: (caption, evil)}
    write_page(tmp_path / "page.html", Survey(kept=kept, dropped=dropped), {}, title=evil, after=after)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\udcff\\x1b[2J\\u202e" in page
    assert page.count('alt="&lt;script') == 2 * len(kept)
    assert not re.search("<script|<img src=x", page)
