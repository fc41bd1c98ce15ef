"""The pack: the one layout of rows that training, sampling and evaluation share.

Letters: B rows, L tokens of a row, S segments of a row, K text tokens of a row, P patch width, Q bytes of a text token,
J text tokens of the empty text, C channels of what is shown beside the noise, M tokens of images of a row, A clips
beside one at most.

A pack is a dict of numpy arrays, batch first:
  tokens_BLP        float32  patches of normalised latents, zero where padding
  position_BL3      float32  (time, row, column) of each token; time in seconds x `time_rate`, the rest in patches
  segment_BL        int32    1...S, 0 where padding
  text_...          what the tokenizer makes of the captions (see `data/tokens.py`): text_BKQ, int32, of bytes
  text_segment_BK   int32    1...S, 0 where padding
  text_position_BK  int32    position within its caption
  empty_...         the same of the empty text, (B, J, ...), for each text array that shards store
  grid_BS3          int32    (t, h, w) token grid of each segment, zero where absent
  time_step_BS      float32  distance in time position between neighbouring token frames, zero where absent
  sample_BS         int32    index in the prepared set (or of the request), -1 where absent
Where the model is shown frames (`video/shown.py`) also
  given_BLC         float32  patches of the mask and the latent of what is shown, the channel fastest
  image_BME         float32  tokens of shown images, those of segment s in the s-th part of M; where it sees any
  image_segment_BM  int32    1...S, 0 where padding
Where clips are given beside the one that is made (`video/parts.py`) also
  part_BL           int32    which clip of its segment a token is of: 0 the one that is made, 1...A those beside it
  role_BSA          int32    role of each clip beside, a value of `ROLES`; 0 where there is none
Where a part of texts is given, and nothing is to be learnt of it, also
  prompt_BS         int32    tokens of each text that are, from its first on, at least 1
The tokens of clips beside lie behind those of the one that is made and have its segment; `grid_BS3`, `time_step_BS` and
`sample_BS` are of that one alone.

With token drop a segment holds some of the tokens of its grid, in their order and with their own positions.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from sora_jax.data.packing.plan import Budget
from sora_jax.data.tokens import Text, Tokenizer
from sora_jax.video import shapes
from sora_jax.video.parts import ROLES, ContextClip
from sora_jax.video.patches import patchify
from sora_jax.video.shown import Shown, ShownConfig

HostPack = dict[str, np.ndarray]
Array = TypeVar("Array")

ALL_TOKENS = slice(None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackLayout:
    """What fixes the arrays of a row besides its clips.

    Attributes:
      budget: L, K and S.
      patch: Latent positions of a token over (time, height, width).
      channels: Of the latent.
      temporal_stride: Frames of one latent frame after the first.
      time_rate: Time positions per second.
      tokenizer: What makes text tokens.
      shown: How the model is shown frames; None: it is not.
      parts: A, the most clips that are given beside one; 0: there are none, and no arrays that say so.
      prompted: Whether a part of texts may be given.
      fps: Frames per second that every clip is taken to have, so that neighbouring token frames lie as far apart in
        all, as in models that count frames; None: its own.
    """

    budget: Budget
    patch: shapes.Size
    channels: int
    temporal_stride: int
    time_rate: float
    tokenizer: Tokenizer
    shown: ShownConfig | None = None
    parts: int = 0
    prompted: bool = False
    fps: float | None = None

    def row(self) -> "Row":
        """Returns an empty row."""
        return Row(self)


class Row:
    """One row being filled, clip after clip; `arrays` are those of a pack without their axis B."""

    def __init__(self, layout: PackLayout):
        budget, tokenizer = layout.budget, layout.tokenizer
        width = math.prod(layout.patch) * layout.channels
        self.layout = layout
        self.arrays: HostPack = {
            "tokens_BLP": np.zeros((budget.tokens, width), np.float32),
            "position_BL3": np.zeros((budget.tokens, 3), np.float32),
            "segment_BL": np.zeros(budget.tokens, np.int32),
            **{name: np.zeros((budget.text_tokens, wide), dtype) for name, (wide, dtype) in tokenizer.arrays.items()},
            "text_segment_BK": np.zeros(budget.text_tokens, np.int32),
            "text_position_BK": np.zeros(budget.text_tokens, np.int32),
            "grid_BS3": np.zeros((budget.segments, 3), np.int32),
            "time_step_BS": np.zeros(budget.segments, np.float32),
            "sample_BS": np.full(budget.segments, -1, np.int32),
        }
        if tokenizer.stored:
            length = tokenizer.count("")
            for name, (wide, dtype) in tokenizer.arrays.items():
                self.arrays[empty_name(name)] = np.zeros((length, wide), dtype)
        if layout.shown is not None:
            self.arrays |= _shown_arrays(layout, layout.shown)
        if layout.parts:
            self.arrays["part_BL"] = np.zeros(budget.tokens, np.int32)
            self.arrays["role_BSA"] = np.zeros((budget.segments, layout.parts), np.int32)
        if layout.prompted:
            self.arrays["prompt_BS"] = np.ones(budget.segments, np.int32)
        self._token = self._text = self._slot = 0

    def put(
        self,
        *,
        sample: int,
        grid: shapes.Size,
        fps: float,
        text: Text,
        tokens_LP: np.ndarray | None,
        kept: np.ndarray | slice = ALL_TOKENS,
        shown: Shown | None = None,
        context: Sequence[ContextClip] = (),
        given: int = 1,
    ) -> slice:
        """Adds a clip and returns where its tokens are; `tokens_LP` None leaves zeros to be filled by sampling.

        `text` are the arrays of its caption. Of the tokens on `grid` those numbered by `kept` are added, ascending.
        `shown` is what the model is shown of it, where the layout has a place for that. The clips of `context` are
        given beside it, normalised, at most `parts` of them: their tokens follow its own, and are not in the slice.
        The first `given` tokens of the text are given, where the layout has a place for that.
        What is added must fit: planning has seen to that.
        """
        taken = self.layout.fps or fps
        step = shapes.time_step(
            taken,
            temporal_stride=self.layout.temporal_stride,
            temporal_patch=self.layout.patch[0],
            time_rate=self.layout.time_rate,
        )
        position_L3 = shapes.positions(grid, step)[kept]
        there = slice(self._token, self._token + len(position_L3))
        row = self.arrays
        assert there.stop <= len(row["segment_BL"]), (there, len(row["segment_BL"]))
        if tokens_LP is not None:
            row["tokens_BLP"][there] = tokens_LP[kept]
        row["position_BL3"][there] = position_L3
        row["segment_BL"][there] = self._slot + 1
        row["grid_BS3"][self._slot] = grid
        row["time_step_BS"][self._slot] = step
        row["sample_BS"][self._slot] = sample
        if shown is not None:
            self._put_shown(shown, there, kept)
        self._token = there.stop
        for number, clip in enumerate(context, start=1):
            self._put_context(dataclasses.replace(clip, fps=clip.fps * taken / fps), number)
        self._put_text(text)
        if self.layout.prompted:
            row["prompt_BS"][self._slot] = given
        self._slot += 1
        return there

    def _put_context(self, clip: ContextClip, number: int) -> None:
        """Adds the clip that is `number` of those beside the one in the present slot."""
        layout, row = self.layout, self.arrays
        tokens_LP = patchify(clip.latent_THWC, layout.patch)
        there = slice(self._token, self._token + len(tokens_LP))
        assert there.stop <= len(row["segment_BL"]), (there, len(row["segment_BL"]))
        row["tokens_BLP"][there] = tokens_LP
        row["position_BL3"][there] = clip.positions(
            layout.patch, temporal_stride=layout.temporal_stride, time_rate=layout.time_rate
        )
        row["segment_BL"][there] = self._slot + 1
        row["part_BL"][there] = number
        row["role_BSA"][self._slot, number - 1] = ROLES[clip.role]
        self._token = there.stop

    def _put_shown(self, shown: Shown, there: slice, kept: np.ndarray | slice) -> None:
        assert self.layout.shown is not None
        self.arrays["given_BLC"][there] = patchify(shown.given_THWC, self.layout.patch)[kept]
        if shown.image_ME is not None:
            count = self.layout.shown.tokens
            place = slice(self._slot * count, (self._slot + 1) * count)
            self.arrays["image_BME"][place] = shown.image_ME
            self.arrays["image_segment_BM"][place] = self._slot + 1

    def put_empty(self, text: Text) -> None:
        """Sets the arrays of the empty text."""
        for name, array in text.items():
            self.arrays[empty_name(name)][:] = array

    def _put_text(self, text: Text) -> None:
        length = len(next(iter(text.values())))
        there = slice(self._text, self._text + length)
        assert there.stop <= self.layout.budget.text_tokens, there
        for name in self.layout.tokenizer.arrays:
            self.arrays[name][there] = text[name]
        self.arrays["text_segment_BK"][there] = self._slot + 1
        self.arrays["text_position_BK"][there] = np.arange(length)
        self._text = there.stop


def _shown_arrays(layout: PackLayout, shown: ShownConfig) -> HostPack:
    """Returns the arrays of what an empty row is shown."""
    tokens, images = layout.budget.tokens, layout.budget.segments * shown.tokens
    arrays: HostPack = {"given_BLC": np.zeros((tokens, math.prod(layout.patch) * shown.channels), np.float32)}
    if images:
        arrays["image_BME"] = np.zeros((images, shown.image_width), np.float32)
        arrays["image_segment_BM"] = np.zeros(images, np.int32)
    return arrays


def empty_name(name: str) -> str:
    """Returns "empty_BKE" of "text_BKE": how a pack calls an array of the empty text."""
    return f"empty_{name.removeprefix('text_')}"


def own_segments(pack: Mapping[str, Any]) -> Any:
    """Returns segment_BL with 0 also where a token is of a clip beside: the tokens that are made."""
    if "part_BL" not in pack:
        return pack["segment_BL"]
    return pack["segment_BL"] * (pack["part_BL"] == 0)


def groups_beside(pack: Mapping[str, Any]) -> Any:
    """Returns which clip beside each token is of, int32 (B, L): 1...S A, segment by segment; 0: of none."""
    part_BL = pack["part_BL"]
    return ((pack["segment_BL"] - 1) * pack["role_BSA"].shape[2] + part_BL) * (part_BL > 0)


def texts_of(pack: Mapping[str, Array]) -> dict[str, Array]:
    """Returns what a pack holds of its texts."""
    return {name: array for name, array in pack.items() if name.startswith("text_")}


def stack_rows(rows: list[Row]) -> HostPack:
    """Returns the pack of several rows."""
    return {name: np.stack([row.arrays[name] for row in rows]) for name in rows[0].arrays}
