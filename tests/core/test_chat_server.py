"""Questions to a chat server that is busy, slow, broken, or not there."""

import datetime
import email.utils
import socket
import threading
import time

import pytest

from sora_jax.core import chat_server
from sora_jax.core.chat_server import KEY_VARIABLE, ChatServer, NoAnswer
from sora_jax.core.errors import UserError
from tests.fake_chat import Reply, fails, fake_chat, says

ASK = [{"role": "user", "content": "What is seen?"}]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(chat_server, "_FIRST_WAIT", 0.001)
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


def test_a_question_is_sent_as_the_interface_has_it(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "sk-secret")
    with fake_chat(says("<think>hm</think>'A red dog.'")) as fake:
        assert fake.client(max_tokens=7, temperature=0.5).answer(ASK) == "A red dog."
    assert fake.asked == [{"model": "seer", "messages": ASK, "max_tokens": 7, "temperature": 0.5}]
    assert fake.paths == ["/v1/chat/completions"]
    assert fake.headers[0]["authorization"] == "Bearer sk-secret"
    assert fake.headers[0]["content-type"] == "application/json"


def test_without_a_key_none_is_sent_and_the_only_model_is_asked():
    with fake_chat(says([{"type": "text", "text": "A "}, {"type": "text", "text": "dog."}])) as fake:
        assert fake.client(model=None).answer(ASK) == "A dog."
    assert fake.paths == ["/v1/models", "/v1/chat/completions"]
    assert fake.asked[0]["model"] == "the one"
    assert "authorization" not in fake.headers[0]


@pytest.mark.parametrize(
    "failures",
    [
        [fails(500), fails(503)],
        [fails(429, "slow down", retry_after="0")],
        [Reply(body=b"<html>")],
        [Reply(body=b'{"error": {"message": "upstream is gone"}}')],
        [Reply(body=b'{"choices": []}')],
        [Reply(body=b'{"choices": [[]]}')],
        [Reply(body=b"[" * 100_000)],
        [Reply(body=b"", headers={"Content-Length": "9"})],
    ],
)
def test_what_passes_is_tried_again(failures):
    with fake_chat(*failures, says("A dog.")) as fake:
        assert fake.client().answer(ASK) == "A dog."
    assert len(fake.asked) == len(failures) + 1


def test_waits_grow_and_the_server_may_ask_for_longer_ones(monkeypatch):
    waits = []
    monkeypatch.setattr(chat_server, "_FIRST_WAIT", 1.0)
    with fake_chat(fails(429, retry_after="7"), fails(429, retry_after="9999999"), fails(502), says("A dog.")) as fake:
        client = fake.client()
        monkeypatch.setattr(client._closed, "wait", waits.append)
        assert client.answer(ASK) == "A dog."
    assert waits[:2] == [7.0, 300.0]
    assert 2.0 <= waits[2] <= 4.0


def test_a_date_to_come_back_is_understood():
    then = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=60)
    assert 50 < chat_server._asked_wait(email.utils.format_datetime(then, usegmt=True)) <= 60
    past = then - datetime.timedelta(days=1)
    assert chat_server._asked_wait(email.utils.format_datetime(past, usegmt=True)) == 0
    assert [chat_server._asked_wait(text) for text in ("", "soon", "-3", "nan", "1e9")] == [0, 0, 0, 0, 0]


def test_a_server_that_keeps_failing_costs_one_question_its_answer():
    told = r"says 500: out of memory; tries: 3"
    with fake_chat(fails(500, "out of\nmemory")) as fake, pytest.raises(NoAnswer, match=told):
        fake.client(retries=2).answer(ASK)
    assert len(fake.asked) == 3


def test_a_hang_ends():
    hang, told = Reply(body=b"", event=threading.Event()), r"does not answer within 0\.1 s; tries: 2; is the server up"
    with fake_chat(hang) as fake, pytest.raises(UserError, match=told):
        fake.client(timeout=0.1, retries=1).answer(ASK)


def test_an_answer_that_drips_ends():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            caller, _ = server.accept()
            with caller:
                caller.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                for _ in range(100):
                    try:
                        caller.sendall(b" ")
                    except OSError:
                        return
                    time.sleep(0.02)

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        start = time.monotonic()
        with pytest.raises(NoAnswer, match=r"within 0\.2 s"):
            ChatServer(f"http://127.0.0.1:{server.getsockname()[1]}", "a", timeout=0.2, retries=0).answer(ASK)
        assert time.monotonic() - start < 1.5
        thread.join()


def test_where_nobody_listens_is_said_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(UserError, match=r"cannot be asked .*refused.*is the server up, and the address right"):
        ChatServer(f"http://127.0.0.1:{port}", "a", retries=1).answer(ASK)


@pytest.mark.parametrize(
    ("reply", "kind", "message"),
    [
        (fails(401, "bad key sk-secret"), UserError, r"says 401: bad key \*\*\*; check .* was sent"),
        (fails(404, "no model seer"), UserError, "says 404: no model seer"),
        (fails(403, "not you"), UserError, "says 403: not you"),
        (fails(400, "x" * 1000), NoAnswer, "says 400: x{200}\\.\\.\\.$"),
        (Reply(status=422, body=b'{"detail": "bad image"}'), NoAnswer, "says 422: bad image"),
        (Reply(status=413, body=b"\x1b[2Jlarge"), NoAnswer, r"says 413: \\x1b\[2Jlarge"),
        (Reply(status=418, body=b""), NoAnswer, "says 418: nothing more"),
    ],
)
def test_a_refused_question_ends_in_the_words_of_the_server(reply, kind, message, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "sk-secret")
    with fake_chat(reply) as fake, pytest.raises(kind, match=message):
        fake.client().answer(ASK)
    assert len(fake.asked) == 1


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (says("", refusal="I cannot look at this."), "refuses: I cannot look at this"),
        (says(None, ending="content_filter"), "refuses: no reason given"),
        (says("A dog that", ending="length"), "longer than 1024 tokens"),
        (says(None), "is empty"),
        (says("<think>on and on"), "is empty"),
    ],
)
def test_an_answer_that_is_none_is_said_to_be_that(reply, message):
    with fake_chat(reply) as fake, pytest.raises(NoAnswer, match=message):
        fake.client().answer(ASK)


def test_a_redirect_is_not_followed_and_no_key_leaves(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "sk-secret")
    told = r"redirects to 127\.0\.0\.1:[0-9]+, which is not followed"
    with fake_chat(says("A dog.")) as other:
        for status in (301, 302, 307, 308):
            moved = Reply(status=status, body=b"", headers={"Location": f"{other.url}/chat/completions"})
            with (
                fake_chat(moved) as fake,
                pytest.raises(UserError, match=told),
            ):
                fake.client().answer(ASK)
        assert other.paths == []


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1"),
        ("http://localhost:8000/v1/", "http://localhost:8000/v1"),
        ("https://host/api/v1/chat/completions", "https://host/api/v1"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
    ],
)
def test_an_address_may_be_short_or_long(url, meant):
    assert ChatServer(url, "a").url == meant


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file:///etc/passwd", "is no address of a chat server"),
        ("ftp://host/v1", "is no address"),
        ("unix:/run/a.sock", "is no address"),
        ("localhost:8000", "is no address"),
        ("http://", "is no address"),
        ("http://host:99999", "cannot be read as an address"),
        ("http://host:a", "cannot be read"),
        ("http://host/v1?key=1", "more than a host and a path"),
        ("http://host/v 1", "more than a host and a path"),
        ("http://höst/v1", "more than a host and a path"),
    ],
)
def test_another_address_is_refused(url, message):
    with pytest.raises(UserError, match=message):
        ChatServer(url, "a")


@pytest.mark.parametrize("url", ["https://me:hunter2@host/v1", "me:hunter2@host/v1", "http://hunter2@host:a"])
def test_a_password_in_an_address_is_refused_and_not_repeated(url):
    with pytest.raises(UserError, match="holds a user name or a password") as caught:
        ChatServer(url, "a")
    assert "hunter2" not in str(caught.value)


def test_a_key_that_no_header_can_hold_is_refused_and_not_repeated(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "hunter2\nX-Evil: 1")
    with pytest.raises(UserError, match=KEY_VARIABLE) as caught:
        ChatServer("http://localhost", "a")
    assert "hunter2" not in str(caught.value)


def test_questions_are_asked_side_by_side_and_answered_in_order():
    gate = threading.Barrier(3, timeout=10.0)

    def reply(body):
        gate.wait()
        content = body["messages"][0]["content"]
        return fails(400, "not this one") if content == "4" else says(f"to {content}")

    with fake_chat(reply) as fake:
        client = fake.client(in_flight=3)
        found = client.each(client.answer, [[{"role": "user", "content": str(n)}] for n in range(6)])
    assert [str(one) for one in found[:4]] == ["to 0", "to 1", "to 2", "to 3"]
    assert isinstance(found[4], NoAnswer)
    assert found[5] == "to 5"
    assert fake.most_at_once == 3


def test_what_no_question_would_survive_ends_all():
    with fake_chat(fails(401, "who are you?")) as fake:
        client = fake.client(in_flight=1)
        with pytest.raises(UserError, match="who are you"):
            client.each(client.answer, [ASK] * 50)
    assert len(fake.asked) < 50


def test_closing_ends_a_question_and_its_waits():
    hang = Reply(body=b"", event=threading.Event())
    with fake_chat(hang) as fake:
        client = fake.client(retries=50)
        threading.Timer(0.1, client.close).start()
        start = time.monotonic()
        with pytest.raises(NoAnswer, match="asking was ended"):
            client.answer(ASK)
        assert time.monotonic() - start < 5.0
        with pytest.raises(NoAnswer, match="asking was ended"):
            client.answer(ASK)
    assert len(fake.asked) == 1


def test_a_failure_that_says_200_is_told_in_its_words():
    failure = Reply(body=b'{"error": {"message": "upstream is gone", "code": 502}}')
    with fake_chat(failure) as fake, pytest.raises(NoAnswer, match="says 200: upstream is gone; tries: 2"):
        fake.client(retries=1).answer(ASK)
