"""Captions of clips by a vision-language model behind a server: frames that we choose go there, JSON comes back.

Servers that are sent a video choose frames by rules of their own, so pictures are sent, as parts of one message.
Shapes: T frames of a clip, N of them that are sent, H rows and W columns of pixels, C = 3 colours.
"""

import base64
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from sora_jax.core.chat_server import ChatServer, Messages, NoAnswer
from sora_jax.core.chat_text import json_object
from sora_jax.core.printable import printable
from sora_jax.data.clips import BadClip, Clip
from sora_jax.data.sources.base import Source, digest
from sora_jax.preparation.drafts import DETAILED, SHORT, Draft, Drafts

FIELDS = ("subject", "background", "style", "camera", "motion")
_JPEG_QUALITY = 85
_COLUMNS = 4  # of a picture of tiles
_KEPT_SIDE = 64  # px, of the short side of the frames that are kept to look at the motion
_MOST_QUOTED = 80  # characters of an answer in a message
# As a field is left empty.
_NOTHING = {"", "-", "none", "n/a", "na", "null", "unknown", "not applicable"}
_SHOWN = {
    "parts": "These are {count} frames of one video of {seconds:.3g} seconds, evenly spaced over it, in order of time.",
    "tiles": "This picture shows {count} frames of one video of {seconds:.3g} seconds, evenly spaced over it: read row "
    "by row, from left to right. Write about the video; never mention frames, rows or tiles.",
    "image": "This is an image.",
}
_ASKED = """{shown}
Describe {what} for someone who cannot see it. Say only what is visible, in plain words; guess no names, feelings or \
intentions, and do not say how good it looks. Answer with one JSON object and nothing else, of these keys, each a text:
"subject": who or what it is about, with colours, kinds and counts
"background": where that is
"style": what kind of footage or picture it is, with the light
"camera": the shot, and how the camera moves
"motion": what moves, which way as seen by the camera, and in which order
"short": one sentence of at most 20 words: the subject and what it does
"detailed": three to six sentences with all of the above, in order of time
Begin "short" and "detailed" with the subject, not with words such as "The video shows". Where there is nothing to say \
about a key, its text is empty."""
_AGAIN = "Answer with the JSON object alone."


@dataclasses.dataclass(frozen=True, kw_only=True)
class RemoteConfig:
    """What a server is shown of a clip and how it is asked; see `configs/base.py`."""

    frames: int
    side: int
    tiled: bool
    in_flight: int
    timeout: float
    retries: int

    def client(self, url: str, model: str | None) -> ChatServer:
        """Returns the server of that address; raises `UserError` as `ChatServer`."""
        return ChatServer(url, model, timeout=self.timeout, retries=self.retries, in_flight=self.in_flight)


class RemoteDescriber:
    """Describes clips by a server, as `preparation.recaption` asks for it.

    Attributes:
      by: The model, wherever it is served, and a digest of what is shown and asked.
    """

    def __init__(self, server: ChatServer, config: RemoteConfig):
        self._server, self._config = server, config
        # By the name of a clip, from when it is read until it is described.
        self._pictures: dict[str, list[bytes]] = {}
        prompt = digest(_ASKED, _SHOWN, FIELDS, config.frames, config.side, config.tiled)
        self.by: Mapping[str, str] = {"model": server.model, "prompt": prompt}

    def read(self, source: Source, index: int) -> Clip:
        """Returns a clip with all of its frames, but small; those that the server will see are put by."""
        clip = source[index]
        numbers = frames_shown(len(clip.pixels_THWC), self._config.frames)
        chosen = [_at_most(clip.pixels_THWC[number], self._config.side) for number in numbers]
        if self._config.tiled and len(chosen) > 1:
            chosen = [tiled(np.stack(chosen))]
        self._pictures[clip.source_id] = [_jpeg(frame_HWC) for frame_HWC in chosen]
        height, width = clip.pixels_THWC.shape[1:3]
        longest = math.ceil(_KEPT_SIDE * max(height, width) / min(height, width))
        small_THWC = np.stack([_at_most(frame_HWC, longest) for frame_HWC in clip.pixels_THWC])
        return dataclasses.replace(clip, pixels_THWC=small_THWC)

    def describe(self, clips: Sequence[Clip]) -> list[Drafts | BadClip]:
        """Returns what the server writes about clips that `read` returned, or why that failed, in their order.

        Raises `UserError` where no clip would fare better: a wrong address, model or key.
        """
        found = self._server.each(self._ask, [self._question(clip) for clip in clips])
        return [
            BadClip(clip.source_id, f"the server gave no captions: {one}") if isinstance(one, NoAnswer) else one
            for clip, one in zip(clips, found, strict=True)
        ]

    def _ask(self, messages: Messages) -> Drafts:
        """Returns the answer, which is asked for once more where it is not of the form that was wished for."""
        answer = self._server.answer(messages)
        try:
            return read_drafts(answer)
        except ValueError:
            said = {"role": "assistant", "content": answer}, {"role": "user", "content": _AGAIN}
            answer = self._server.answer([*messages, *said])
        try:
            return read_drafts(answer)
        except ValueError as error:
            raise NoAnswer(f"{error}: {printable(answer[:_MOST_QUOTED])!r}") from error

    def _question(self, clip: Clip) -> Messages:
        pictures = self._pictures.pop(clip.source_id)
        frames = len(clip.pixels_THWC)
        kind = "image" if frames == 1 else "tiles" if self._config.tiled else "parts"
        shown = _SHOWN[kind].format(count=min(frames, self._config.frames), seconds=frames / clip.fps)
        text = _ASKED.format(shown=shown, what="it" if kind == "image" else "the video")
        urls = [f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}" for picture in pictures]
        parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def read_drafts(answer: str) -> Drafts:
    """Returns the captions and the fields in an answer; raises ValueError where a caption lacks."""
    found = {str(key).strip().lower(): value for key, value in json_object(answer).items()}
    texts = {key: _text(found.get(key)) for key in (*FIELDS, SHORT, DETAILED)}
    lacking = [key for key in (SHORT, DETAILED) if not texts[key]]
    if lacking:
        raise ValueError(f"it lacks the {' and the '.join(lacking)} caption")
    return Drafts(
        captions=tuple(Draft(text=texts[style], style=style) for style in (SHORT, DETAILED)),
        fields={key: texts[key] for key in FIELDS if texts[key]},
    )


def _text(value: object) -> str:
    """Returns a text, or a list of texts as one; "" for what says nothing."""
    texts = value if isinstance(value, list) else [value]
    joined = ", ".join(" ".join(text.split()) for text in texts if isinstance(text, str) and text.strip())
    return "" if joined.casefold().rstrip(".") in _NOTHING else joined


def frames_shown(frames: int, most: int) -> list[int]:
    """Returns the numbers of at most so many of a clip's frames, evenly spaced, the first and the last among them."""
    return np.unique(np.linspace(0, frames - 1, min(frames, most)).round().astype(int)).tolist()


def tiled(pixels_NHWC: np.ndarray) -> np.ndarray:
    """Returns uint8 (rows * H, columns * W, C): frames row by row, `_COLUMNS` in a row; what is left is black."""
    count, height, width, colours = pixels_NHWC.shape
    columns = min(count, _COLUMNS)
    rows = -(-count // columns)
    filled = np.zeros((rows * columns, height, width, colours), np.uint8)
    filled[:count] = pixels_NHWC
    grid = filled.reshape(rows, columns, height, width, colours).swapaxes(1, 2)
    return grid.reshape(rows * height, columns * width, colours)


def _at_most(pixels_HWC: np.ndarray, side: int) -> np.ndarray:
    """Returns a frame whose longer side has at most so many pixels."""
    image = Image.fromarray(pixels_HWC)
    image.thumbnail((side, side), Image.Resampling.BICUBIC)
    return np.asarray(image)


def _jpeg(pixels_HWC: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()
