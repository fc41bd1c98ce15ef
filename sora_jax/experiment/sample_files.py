"""Requests to files: each checked before any is made, written whole, and, of a file of requests, made once."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sora_jax.core.paths import check_writable
from sora_jax.core.printable import printable
from sora_jax.data.media.writer import first_file
from sora_jax.experiment.compile_times import compiling_told
from sora_jax.experiment.estimate import COMPILING
from sora_jax.experiment.expansion import reword_requests
from sora_jax.experiment.sampling_time import RoundsTold
from sora_jax.experiment.session import Session
from sora_jax.generate.denoiser import SolverConfig
from sora_jax.generate.job import Job, check_request, read_job, reworded
from sora_jax.generate.limits import ModelLimits
from sora_jax.generate.outputs import Book, OutputFiles, line_named, output_paths
from sora_jax.generate.request import Request
from sora_jax.generate.scheduler import run_jobs
from sora_jax.generate.write import file_stem, is_safe_name


def write_samples(
    session: Session,
    requests: Sequence[Request],
    *,
    solver: SolverConfig,
    source: str | None = None,
    codec: str | None = None,
    expand: str | None = None,
) -> None:
    """Makes every request that is not done and writes a file for each; prints its name and what is measured of it.

    Args:
      session: The run that makes them.
      requests: What is asked for.
      solver: What solves.
      source: The file that the requests were read from, each of which is made once; None: they are of none.
      codec: As of `data.media.writer.ClipFormat`.
      expand: By what prompts are written out first, as `reword_requests` takes it; None: by nobody.

    Raises:
      UserError: A request cannot be made. Before any is made, but for what only the whole of a given video tells.
      StorageError: A file cannot be written.
    """
    limits, models = session.limits, session.models
    file = None if source is None else Path(source)
    paths = paths_of(models.workdir.path / "samples", requests, limits, file=file, codec=codec)
    # All that can be said against a request of the command line is said before models are loaded.
    jobs = [read_job(request, limits) for request in requests] if file is None else []
    facts = models.facts()
    book = None if file is None else _book(file, requests, paths, facts, solver, codec)
    todo = _left(book, requests)
    asked = reword_requests(session, [requests[number] for number in todo], expand)
    jobs = [reworded(job, request, limits) for job, request in zip(jobs, asked, strict=False)]
    if session.settings.model is not None:
        print(session.described(solver, requests), flush=True)
    models.read_texts(_texts(asked, limits))
    sampler = models.sampler(solver, videos=len(requests))
    with contextlib.ExitStack() as stack, tqdm(total=len(todo), disable=len(todo) < 2, unit="video") as progress:
        if todo:
            stack.enter_context(compiling_told("sampling", COMPILING, session.settings, session.cache))
        places = [paths[number] for number in todo]
        files = OutputFiles(stack, asked, places, codec=codec, facts={**facts, **solver.facts()})
        waiting = jobs or (_read(request, limits, file) for request in asked)
        told = RoundsTold(models, solver)
        for number, notes in run_jobs(sampler, models.params, waiting, limits, files.open, before=told):
            path = files.close(number)
            if book is not None:
                book.add(requests[todo[number]], path)
            progress.update()
            progress.write(f"{printable(str(path))}{''.join(f', {name} {value:.2f}' for name, value in notes.items())}")


def _texts(requests: Sequence[Request], limits: ModelLimits) -> Iterator[str]:
    """Yields all texts that requests are made by."""
    for request in requests:
        yield from (limits.negative if request.negative is None else request.negative, *request.shown)


def paths_of(
    samples: Path, requests: Sequence[Request], limits: ModelLimits, *, file: Path | None, codec: str | None
) -> list[Path]:
    """Returns the file of each request, after checking the request and that its file can be written."""
    name = "prompted" if file is None else file.stem
    folder = samples / (name if is_safe_name(name) else file_stem(name))
    outcomes = []
    for request in requests:
        with line_named(request, file):
            outcomes.append(check_request(request, limits))
    paths = output_paths(folder, requests, outcomes, source=file, codec=codec)
    for request, path in zip(requests, paths, strict=True):
        with line_named(request, file):
            check_writable(first_file(path))
    return paths


def _book(
    file: Path,
    requests: Sequence[Request],
    paths: Sequence[Path],
    facts: dict[str, Any],
    solver: SolverConfig,
    codec: str | None,
) -> Book:
    """Returns the book beside the files of requests; raises UserError where one would replace another file's."""
    made_by = {**facts, "solver": repr(solver), **solver.beside}
    book = Book(paths[0].with_name("done.jsonl"), file, made_by, codec=codec)
    for request, path in zip(requests, paths, strict=True):
        if request.output is not None:
            with line_named(request, file):
                book.check(path)
    return book


def _left(book: Book | None, requests: Sequence[Request]) -> list[int]:
    """Returns the numbers of the requests that are not done, and says how many are."""
    todo = [n for n, request in enumerate(requests) if book is None or book.find(request) is None]
    if len(todo) < len(requests):
        print(f"{len(requests) - len(todo)} of {len(requests)} requests are done already", flush=True)
    return todo


def _read(request: Request, limits: ModelLimits, file: Path | None) -> Job:
    with line_named(request, file):
        return read_job(request, limits)
