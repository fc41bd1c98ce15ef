"""Questions to a language model behind a server of OpenAI's kind: POST .../chat/completions, by the standard library.

Nothing else in the package sends anything to an address. Redirects are not followed and no proxy is used, so that what
is sent, and the key with it, goes where the user said and nowhere else.
"""

import contextlib
import dataclasses
import datetime
import email.utils
import http.client
import json
import os
import random
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from absl import logging

from sora_jax.core.chat_text import bare_text
from sora_jax.core.errors import UserError
from sora_jax.core.printable import printable

T = TypeVar("T")
Q = TypeVar("Q")
# As the interface has them: {"role": "user", "content": text, or a list of parts}.
Messages = Sequence[Mapping[str, Any]]

# Of the environment: the key for servers that ask for one.
KEY_VARIABLE = "SORA_CHAT_KEY"
_ENDING = "/chat/completions"
# Statuses after which the same question may be asked again, and those after which no question would fare better.
_PASSING, _HOPELESS = (408, 409, 425, 429, 500, 502, 503, 504, 529), (401, 402, 404, 405)
# Seconds between two tries: before the second try (doubled from there on), and at most, whatever the server asks for.
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 300.0
_MOST_BYTES = 2**24  # of an answer
_MOST_WORDS = 200  # characters of the server's own words in a message


class NoAnswer(Exception):
    """A question was left without an answer that can be used; the message says why. Others may fare better."""


class _Passing(Exception):
    """A try failed in a way that the next one may not; `wait` is the seconds that the server asks for."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes


class ChatServer:
    """A model of a chat server. Several threads may ask it.

    Args:
      url: http://... or https://..., such as http://localhost:8000/v1; without a path /v1 is meant.
      model: Its name there; None: the only one that the server has.
      timeout: Seconds that a try may take until the last byte of its answer.
      retries: Tries after the first, 0 or more, where there is no connection, the time is over, the server is busy
        or fails (429, 5xx), or answers what cannot be read. The waits between them double, and vary by chance.
      in_flight: Questions that `each` asks at a time, 1 or more.
      max_tokens: Of an answer, 1 or more.
      temperature: 0 or more; 0 asks for the likeliest answer.

    Raises `UserError` for another URL, for one that holds a password, and for a key that no header can hold. The key is
    what the environment has under `KEY_VARIABLE`; without one none is sent.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        timeout: float = 120.0,
        retries: int = 5,
        in_flight: int = 8,
        max_tokens: int = 1024,
        temperature: float = 0.0,
    ):
        self._address = _address(url)
        self.url = self._address.geturl()
        self._key = _key()
        here = self._address.hostname in ("localhost", "127.0.0.1", "::1")
        if self._key and self._address.scheme == "http" and not here:
            logging.warning(f"{KEY_VARIABLE} is sent to {self.url} unencrypted: use https:// where others can listen")
        self._timeout, self._retries, self._in_flight = timeout, retries, in_flight
        self._parameters = {"max_tokens": max_tokens, "temperature": temperature}
        self._model = model
        self._naming = threading.Lock()
        self._heard = self._answered = False  # of the server anything at all, and an answer
        self._closed = threading.Event()
        self._sockets: set[socket.socket] = set()

    @property
    def model(self) -> str:
        """Its name; asks the server where none was given, and raises `UserError` if it has not exactly one model."""
        with self._naming:
            if self._model is None:
                names = self._ask("GET", "/models", None, _listed)
                if len(names) != 1:
                    known = ", ".join(names[:10]) or "none"
                    raise UserError(f"{self.url} has {len(names)} models, name the one to ask: {printable(known)}")
                self._model = names[0]
            return self._model

    def answer(self, messages: Messages) -> str:
        """Returns what the model answers, without thoughts, fences and quotes around it (`bare_text`).

        Raises `NoAnswer` where this question got none, and `UserError` where no other would: a wrong address, model or
        key, or nothing that answers there.
        """
        body = {"model": self.model, "messages": list(messages), **self._parameters}
        said, refusal, ending = self._ask("POST", _ENDING, json.dumps(body).encode(), _said)
        self._answered = True
        if refusal or ending == "content_filter":
            raise NoAnswer(f"the model or its server refuses: {self._shortened(refusal or said) or 'no reason given'}")
        if ending == "length":
            raise NoAnswer(f"the answer is longer than {self._parameters['max_tokens']} tokens")
        if "</think>" in said:
            logging.log_first_n(logging.WARNING, "the model thinks aloud first: without that it is faster", 1)
        text = bare_text(said)
        if not text:
            raise NoAnswer("the answer is empty")
        return text

    def each(self, ask: Callable[[Q], T], questions: Sequence[Q]) -> list[T | NoAnswer]:
        """Returns what `ask` returns for each question, or the `NoAnswer` that it raises, in their order.

        `in_flight` of them are under way at a time. Whatever else `ask` raises ends all, and closes the server.
        """

        def guarded(one: Q) -> T | NoAnswer:
            try:
                return ask(one)
            except NoAnswer as error:
                return error

        pool = ThreadPoolExecutor(self._in_flight)
        try:
            return list(pool.map(guarded, questions))
        except BaseException:
            self.close()  # or those under way would be waited for
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def close(self) -> None:
        """Ends what is under way, which raises `NoAnswer`, as each later question does."""
        self._closed.set()
        for sock in list(self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _ask(self, method: str, path: str, body: bytes | None, read: Callable[[Any], T]) -> T:
        """Returns what `read` finds in the JSON of the reply, after as many tries as it takes."""
        for number in range(self._retries + 1):
            self._check_open()
            try:
                return read(self._json(self._exchange(method, path, body)))
            except UserError:  # which is a ValueError, too
                raise
            except _Passing as error:
                why, wait = str(error), error.wait
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                why, wait = f"{self.url} does not answer as a chat server does ({type(error).__name__})", 0.0
            if number < self._retries:
                backed_off = _FIRST_WAIT * 2**number * random.uniform(0.5, 1.0)
                self._closed.wait(min(max(wait, backed_off), _LONGEST_WAIT))
        self._check_open()
        tries = f"{why}; tries: {self._retries + 1}"
        if not self._heard:
            raise UserError(f"{tries}; is the server up, and the address right?")
        raise NoAnswer(tries)

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise NoAnswer("asking was ended")

    def _json(self, reply: _Reply) -> Any:
        """Returns what a good reply says; raises for another one what its status means."""
        if reply.status == http.client.OK:
            try:
                found = json.loads(reply.body)
            except RecursionError as error:
                raise ValueError("nested too deeply") from error
            if not isinstance(found, dict) or not found.get("error"):
                return found
        said = f"{self.url} says {reply.status}: {self._shortened(_words(reply.body)) or 'nothing more'}"
        if reply.status in _PASSING or reply.status == http.client.OK:  # some fail after they have said 200
            raise _Passing(said, _asked_wait(reply.headers.get("retry-after", "")))
        if 300 <= reply.status < 400:
            to = urllib.parse.urlsplit(reply.headers.get("location", "")).netloc.rpartition("@")[2]
            to = printable(to) or "another path"
            raise UserError(f"{self.url} redirects to {to}, which is not followed: give the address itself")
        if reply.status in _HOPELESS or (reply.status == http.client.FORBIDDEN and not self._answered):
            key = "was sent" if self._key else "is not set, so no key was sent"
            raise UserError(f"{said}; check address and model; {KEY_VARIABLE} {key}")
        raise NoAnswer(said)

    def _exchange(self, method: str, path: str, body: bytes | None) -> _Reply:
        """Returns one reply; raises `_Passing` where there is none."""
        deadline = time.monotonic() + self._timeout
        headers = {"Accept": "application/json", "User-Agent": "sora_jax", "Connection": "close"}
        headers |= {"Content-Type": "application/json"} if body else {}
        headers |= {"Authorization": f"Bearer {self._key}"} if self._key else {}
        of_scheme = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
        connection = of_scheme[self._address.scheme](
            self._address.hostname or "", self._address.port, timeout=self._timeout
        )
        with contextlib.closing(connection), contextlib.ExitStack() as under_way:
            try:
                connection.connect()
                sock = connection.sock
                self._sockets.add(sock)
                under_way.callback(self._sockets.discard, sock)
                self._check_open()
                connection.request(method, self._address.path + path, body, headers)
                response = connection.getresponse()
                self._heard = True
                read = _read(response, sock, deadline)
            except TimeoutError as error:
                raise _Passing(f"{self.url} does not answer within {self._timeout:g} s") from error
            except ssl.SSLCertVerificationError as error:
                raise UserError(f"the certificate of {self.url} is not trusted: {error.verify_message}") from error
            except (OSError, http.client.HTTPException) as error:
                raise _Passing(f"{self.url} cannot be asked ({error or type(error).__name__})") from error
        return _Reply(status=response.status, headers=response.headers, body=read)

    def _shortened(self, words: str) -> str:
        """Returns words of the server for a message, without the key, should it repeat that."""
        words = words.replace(self._key, "***") if self._key else words
        words = printable(" ".join(words.split()))
        return words if len(words) <= _MOST_WORDS else words[:_MOST_WORDS] + "..."


def _address(url: str) -> urllib.parse.SplitResult:
    """Returns the address to which paths of the interface are appended."""
    how = "give http://HOST:PORT/v1 or https://HOST/v1"
    if "@" in url:
        raise UserError(f"the address of the server holds a user name or a password: put the key into {KEY_VARIABLE}")
    try:
        parts = urllib.parse.urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise UserError(f"{printable(url)} cannot be read as an address: {how}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"{printable(url)} is no address of a chat server: {how}")
    if parts.query or parts.fragment or not url.isascii() or not url.isprintable() or " " in url:
        raise UserError(f"{printable(url)} has more than a host and a path of plain letters: {how}")
    path = parts.path.rstrip("/").removesuffix(_ENDING).rstrip("/")
    return parts._replace(path=path or "/v1")


def _key() -> str:
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"{KEY_VARIABLE} holds characters that no key has: set it again")
    return key


def _read(response: http.client.HTTPResponse, sock: socket.socket, deadline: float) -> bytes:
    """Returns the body, of which each piece may come late, but not all of it."""
    pieces, size = [], 0
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        sock.settimeout(left)
        piece = response.read1(2**16)
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)
        size += len(piece)
        if size > _MOST_BYTES:
            raise http.client.HTTPException(f"an answer of over {_MOST_BYTES} bytes")


def _said(reply: Any) -> tuple[str, str, str]:
    """Returns the text of an answer, the words of a refusal and the reason for its end, each "" where there is none."""
    choice = reply["choices"][0]
    content = choice["message"].get("content") or ""
    if not isinstance(content, str):
        content = "".join(part.get("text") or "" for part in content)
    return content, str(choice["message"].get("refusal") or ""), str(choice.get("finish_reason") or "")


def _listed(reply: Any) -> list[str]:
    return [str(one["id"]) for one in reply["data"]]


def _words(body: bytes) -> str:
    """Returns what a refusal says: the message in JSON of one of the usual forms, else its text."""
    text = body.decode(errors="replace")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    while isinstance(found, dict):
        found = next((found[key] for key in ("error", "message", "detail") if found.get(key)), None)
    return text if found is None else str(found)


def _asked_wait(text: str) -> float:
    """Returns the seconds that a `Retry-After` asks for, a number or a date; 0 for what is neither."""
    if text.strip().isdigit():
        return float(text)
    try:
        until = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    now = datetime.datetime.now(until.tzinfo)
    return max(0.0, (until - now).total_seconds())
