"""The sources of clips in files, by the names that `data.source` gives them; "shapes" is the drawn world instead."""

import dataclasses
from collections.abc import Callable

from sora_jax.data.sources.base import FolderSource
from sora_jax.data.sources.decoded import DecodedSource
from sora_jax.data.sources.records import RecordSource
from sora_jax.data.sources.tfds import TfdsSource
from sora_jax.data.sources.webdataset import TarSource


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileSource:
    """A source of clips in files.

    Attributes:
      open: Called with `data.path`, the table `captions` and what `decoded.SourceLimits` names.
      needs: What the path must be and how it is passed, for whoever gave none; `{key}` stands for the group of keys.
    """

    open: Callable[..., DecodedSource]
    needs: str


SOURCES: dict[str, FileSource] = {
    "folder": FileSource(open=FolderSource, needs="a folder: pass --config.{key}.path=DIR"),
    "webdataset": FileSource(
        open=TarSource, needs="tar files: pass --config.{key}.path=FILE.tar, a folder of them or a pattern"
    ),
    "arrayrecord": FileSource(
        open=RecordSource, needs="records: pass --config.{key}.path=FILE.arrayrecord or a folder of such files"
    ),
    "tfds": FileSource(open=TfdsSource, needs="a data set: pass --config.{key}.path=DIR/NAME/VERSION, or that#SPLIT"),
}
