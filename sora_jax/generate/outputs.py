"""Files of requests: each whole or not there, none in the place of what it is not, none made twice."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sora_jax.core.errors import UserError
from sora_jax.data.media.writer import (
    CODECS,
    ClipFormat,
    Write,
    check_codec,
    check_written_suffix,
    first_file,
    is_numbered,
    open_clip,
    share_a_file,
)
from sora_jax.data.tokens import clean_caption
from sora_jax.generate.job import Job, Outcome
from sora_jax.generate.request import GIVEN_FILES, Request
from sora_jax.generate.write import file_stem, free_path, is_safe_name, settle


class OutputFiles:
    """The files that are being written, each by the number of its job; `stack` ends those that never are done.

    Args:
      stack: Of the whole work.
      requests: Of each job. One without `output` has a name that nobody chose: it takes the place of no other file.
      paths: Of each job, all different.
      codec: As of `ClipFormat`.
      facts: What every file says of itself besides what was asked for.
    """

    def __init__(
        self,
        stack: contextlib.ExitStack,
        requests: Sequence[Request],
        paths: Sequence[Path],
        *,
        codec: str | None,
        facts: dict[str, Any],
    ):
        self._stack, self._paths, self._codec, self._facts = stack, list(paths), codec, facts
        self._chosen = [request.output is not None for request in requests]
        self._open: dict[int, contextlib.ExitStack] = {}

    def open(self, number: int, job: Job) -> Write:
        """Returns what takes the frames of a job."""
        form = ClipFormat(fps=job.fps, codec=self._codec, facts={**facts_of(job), **self._facts})
        file = self._open[number] = self._stack.enter_context(contextlib.ExitStack())
        return file.enter_context(open_clip(self._made(number), form))

    def close(self, number: int) -> Path:
        """Gives the file of a job its name, and returns it."""
        self._open.pop(number).close()
        path = self._paths[number]
        return path if self._chosen[number] else settle(self._made(number), path, self._paths)

    def _made(self, number: int) -> Path:
        """Returns where a file is written: only its content tells whether it may have its name."""
        path = self._paths[number]
        return path if self._chosen[number] else path.with_name(f".{os.getpid()}-{number}{path.suffix}")


class Book:
    """Which requests of a file are done, a line for each, so that none is done twice.

    Args:
      path: Of the book.
      requests: Of the file of requests.
      facts: Which model did them.
      codec: As of `ClipFormat`; what is the first of an ending is as None.
    """

    def __init__(self, path: Path, requests: Path, facts: dict[str, Any], *, codec: str | None = None):
        usual = {None, *(codecs[0] for codecs in CODECS.values())}
        self._facts = facts if codec in usual else {**facts, "codec": codec}
        self._path, self._requests = path, str(requests.resolve())
        self._done: dict[str, list[str]] = {}
        self._owners: dict[str, str] = {}
        self._numbered: set[str] = set()
        digests: dict[str, str] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # torn, as by a full disk: done again
                said = json.loads(line)
                name, digest, owner = said["output"], said["digest"], said.get("requests", self._requests)
                for replaced in self._near(name):
                    digests.pop(replaced, None)
                digests[name], self._owners[name] = digest, owner
                if is_numbered(Path(name)):
                    self._numbered.add(name)
        for name, digest in digests.items():
            self._done.setdefault(digest, []).append(name)

    def find(self, request: Request) -> Path | None:
        """Returns the file of a request that was done, and is still there; of equal requests another each time."""
        names = self._done.get(self._digest(request), [])
        while names:
            path = self._path.with_name(names.pop(0))
            if first_file(path).exists():
                return path
        return None

    def check(self, path: Path) -> None:
        """Raises UserError where a name that a request chose is that of a file from another file of requests."""
        for name in self._near(path.name):
            made = path.with_name(name)
            owner = self._owners[name]
            if owner != self._requests and first_file(made).exists():
                raise UserError(
                    f"{made} is from the requests {owner}, and output {path.name!r} of {self._requests} would replace "
                    "it: choose another output, or call the file of requests something else"
                )

    def _near(self, name: str) -> list[str]:
        """Returns the outputs in the book that are, or may have a frame in, a file of this name."""
        path, known = Path(name), self._owners
        if not is_numbered(path):
            known = {name, *self._numbered} & known.keys()
        return [other for other in known if share_a_file(path, Path(other))]

    def add(self, request: Request, path: Path) -> None:
        """Notes that a request is done."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"output": path.name, "digest": self._digest(request), "requests": self._requests})
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def _digest(self, request: Request) -> str:
        """Returns what tells requests apart: what is asked for, what the given files hold, the model."""
        given = [_content(name) for name in request.files()]
        asked = json.dumps({**request.facts(), **self._facts, "given": given}, sort_keys=True)
        return hashlib.sha256(asked.encode()).hexdigest()


def _content(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def line_named(request: Request, source: Path | None) -> Iterator[None]:
    """Has what is refused of a file of requests begin with the line, counted from 1 as an editor does."""
    try:
        yield
    except UserError as error:
        if source is None or request.line is None:
            raise
        raise UserError(f"{source}, line {request.line}: {error}") from error


class Places:
    """Where the outputs of requests lie: each of them alone, and at no file that is given."""

    def __init__(self):
        self._taken: dict[str, Request] = {}
        self._numbered: dict[str, Request] = {}

    def add(self, request: Request, path: Path) -> None:
        """Adds an output; raises UserError where it, or a frame of it, is that of another, or a file that is given."""
        numbered = is_numbered(path)
        place = str(_beside_links(path)) if numbered else os.path.realpath(path)
        if (other := self._other(place, numbered=numbered)) is not None:
            said = f"two --output are {path}"
            if other.line is not None:
                said = f"the output {path} is that of line {other.line}, too"
            raise UserError(f"{said}: give each request a file of its own")
        for given in request.files():
            if any(_may_be_one(place, at) for at in {os.path.realpath(given), str(_beside_links(given))}):
                what = "would have a frame in" if numbered else "is"
                raise UserError(f"the output {path} {what} the file {given} that is given: choose another name for it")
        (self._numbered if numbered else self._taken)[place] = request

    def _other(self, place: str, *, numbered: bool) -> Request | None:
        """Returns the request whose output is at a place, or may have a frame there."""
        if not numbered and place in self._taken:
            return self._taken[place]
        known = {**self._taken, **self._numbered} if numbered else self._numbered
        return next((other for taken, other in known.items() if _may_be_one(place, taken)), None)


def _beside_links(path: str | Path) -> Path:
    """Returns a name in the folder that it is in, whatever links lead there; it may be a link itself."""
    return Path(os.path.realpath(Path(path).parent), Path(path).name)


def _may_be_one(place: str, other: str) -> bool:
    return os.path.dirname(place) == os.path.dirname(other) and share_a_file(Path(place), Path(other))


def output_paths(
    folder: Path, requests: Sequence[Request], outcomes: Sequence[Outcome], *, source: Path | None, codec: str | None
) -> list[Path]:
    """Returns the file of each request; raises UserError where its ending or the codec cannot hold it.

    Args:
      folder: Of files that have no name of their own, and of all that a file of requests asks for.
      requests: What is asked for.
      outcomes: What each comes to.
      source: The file of requests; None where there is none.
      codec: As of `ClipFormat`.
    """
    paths: list[Path] = []
    for request, (image, size) in zip(requests, outcomes, strict=True):
        with line_named(request, source):
            path = _output_path(folder, request, ".png" if image else ".mp4", paths, source=source)
            check_written_suffix(path, frames=1 if image else 2, codec=codec)
            check_codec(codec, size)
        paths.append(path)
    places = Places()
    for request, path in zip(requests, paths, strict=True):
        with line_named(request, source):
            places.add(request, path)
    return paths


def _output_path(folder: Path, request: Request, suffix: str, taken: Sequence[Path], *, source: Path | None) -> Path:
    if request.output is None:
        task = "" if request.task == "text" else f"{request.task}_"
        stem = f"{task}{file_stem(' '.join(request.prompt[:1]))}_seed{request.seed}"
        return free_path(folder, stem, suffix, set(taken))
    if source is None:
        return Path(request.output)
    if not is_safe_name(request.output):
        raise UserError(
            f"output {request.output[:120]!r} must be the name of a file, printable, of 120 bytes at most, without / "
            "and not beginning with a dot or a dash"
        )
    return folder / request.output


def facts_of(job: Job) -> dict[str, Any]:
    """Returns what a file should say of how it was made; of other files their names alone."""
    asked = {name: value for name, value in job.request.facts().items() if name != "output"}
    for name in asked.keys() & {*GIVEN_FILES}:
        value = asked[name]
        asked[name] = Path(value).name if isinstance(value, str) else [Path(one).name for one in value]
    shown = {"prompt": list(job.prompts)}
    if job.request.expansion:
        shown = {"prompt": list(map(clean_caption, job.request.prompt)), "expansion": list(job.prompts)}
    return {**asked, **shown, "size": list(job.size), "fps": job.fps}
