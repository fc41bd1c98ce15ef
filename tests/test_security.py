"""What strangers write stays data, and secrets stay out of what a run writes; docs/security.md has the rules."""

import ast
import base64
import contextlib
import json
import os
import re
import socket
import sys
import tarfile
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from sora_jax.core import compiling
from sora_jax.core.errors import UserError
from sora_jax.data.clips import BadClip
from sora_jax.data.media.file_kinds import MEDIA_SUFFIXES
from sora_jax.data.media.writer import write_clip
from sora_jax.data.sources.base import FolderSource
from sora_jax.data.sources.records import RecordSource, Sample, write_records
from sora_jax.data.sources.remote import place
from sora_jax.data.sources.webdataset import TarSource
from tests.conftest import ROOT, SECRETS

# Each runs code that it reads, or fetches what it reads.
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_MODULES = {
    *("pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml", "h5py", "jsonpickle"),
    *("tarfile", "urllib.request", "requests", "http.client", "ftplib", "runpy", "code"),
}
# The one module that asks an address, which a flag or the config gives: its own tests say what it never does.
ASKS = {"sora_jax/core/chat_server.py": ["http.client"]}
FORBIDDEN_METHODS = {"extractall", "unpack_archive", "system", "popen", "unsafe_load", "load_module", "from_pickle"}


def faults(source: str) -> list[str]:
    """Returns what in a module could run or fetch what strangers wrote."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{name.name}" for name in node.names} | {node.module}
            found += sorted(FORBIDDEN_MODULES & names)
        elif isinstance(node, ast.Call):
            found += _faults_of_call(node)
    return found


def _faults_of_call(node: ast.Call) -> list[str]:
    given = {word.arg: ast.unparse(word.value) for word in node.keywords}
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
    whole = ast.unparse(node.func)
    found = [name] if name in FORBIDDEN_CALLS else [method] if method in FORBIDDEN_METHODS else []
    if whole in ("np.load", "numpy.load") and given.get("allow_pickle") != "False":
        found.append(whole)
    return found + [f"{key}=True" for key in ("allow_pickle", "shell") if given.get(key, "False") != "False"]


def test_nothing_in_the_package_runs_what_it_reads():
    paths = [path for folder in ("sora_jax", "configs", "launch") for path in (ROOT / folder).rglob("*.py")]
    # Drills make what others must refuse, and start commands that they disturb.
    paths = [path for path in paths if "drills" not in path.parts]
    assert len(paths) > 100
    found = {str(path.relative_to(ROOT)): faults(path.read_text()) for path in paths}
    assert {path: what for path, what in found.items() if what} == ASKS


@pytest.mark.parametrize(
    "source",
    [
        "eval(text)",
        "exec(open(path).read())",
        "import pickle",
        "from pickle import loads",
        "def f():\n    import yaml",
        "from urllib import request",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.save(path, array, allow_pickle=flag)",
        "subprocess.run(line, shell=True)",
        "os.system(line)",
        "shutil.unpack_archive(path)",
        "tar.extractall(path)",
    ],
)
def test_what_would_run_it_is_found(source):
    assert faults(source)


def test_what_only_reads_is_no_fault():
    assert faults("np.load(path, allow_pickle=False)\nmodel.eval()\nre.compile('a')\nsubprocess.run([a])") == []


def test_each_boundary_names_tests_that_are_there():
    rows = [line for line in (ROOT / "docs" / "security.md").read_text().splitlines() if line.startswith("| ")]
    named = [re.findall(r"`([^`]+\.py)`", row.rsplit("|", 2)[1]) for row in rows[1:]]
    assert len(named) > 10
    assert all(named), "a row without a test"
    assert [path for paths in named for path in paths if not (ROOT / path).is_file()] == []


def test_a_flag_is_a_value_and_never_runs(toy_config, tmp_path, monkeypatch):
    ran = tmp_path / "ran"
    code, kept = "__import__('pathlib').Path(RAN).touch()".replace("RAN", repr(str(ran))), []
    for key in ("sampling.size", "sampling.prompts", "data.path", "data.captions", "seed", "run", "sampling.fps"):
        for text in (code, f"({code},)", f"[{code} for _ in (1,)]", f"lambda: {code}"):
            values, line = flags.FlagValues(), ["test", f"--config.{key}={text}"]
            monkeypatch.setattr(sys, "argv", line)  # there it is looked for which keys are flags
            config_flags.DEFINE_config_dict("config", toy_config(), flag_values=values)
            with contextlib.suppress(flags.Error, ValueError, SyntaxError, TypeError):
                values(line)
                kept.append(key)
    assert set(kept) >= {"sampling.prompts", "data.path"}
    assert not ran.exists()


@pytest.fixture
def listener() -> Iterator[tuple[str, list[str]]]:
    """Yields an address of this machine and the list of whoever called there."""
    calls: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen() -> None:
            while True:
                try:
                    caller, who = server.accept()
                except OSError:
                    return
                calls.append(str(who))
                caller.close()

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}", calls
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def lures(address: str, outside: Path) -> dict[str, str]:
    """Returns texts that some player or other takes for directions to another file or address."""
    url = f"http://{address}/a.mp4"
    return {
        "concat": "ffconcat version 1.0\nfile good.mp4\n",
        "concat_outside": f"ffconcat version 1.0\nfile {outside}\n",
        "concat_url": f"ffconcat version 1.0\nfile {url}\n",
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{url}\n#EXTINF:1,\n{outside}\n#EXT-X-ENDLIST\n",
        "dash": f'<MPD type="static" mediaPresentationDuration="PT1S"><Period><AdaptationSet mimeType="video/mp4">'
        f'<Representation id="1"><BaseURL>{url}</BaseURL></Representation></AdaptationSet></Period></MPD>',
        "sdp": f"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video {address.split(':')[1]} RTP/AVP 96\n",
        "svg": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{url}"/></svg>',
        "address": url,
    }


def test_no_file_leads_to_another_one_or_to_an_address(listener, tmp_path):
    address, calls = listener
    outside, folder = tmp_path / "outside.mp4", tmp_path / "clips"
    for path in (outside, folder / "good.mp4"):
        write_clip(path, np.full((3, 16, 16, 3), 90, np.uint8), fps=8)
    files = {f"{name}{s}": text for name, text in lures(address, outside).items() for s in sorted(MEDIA_SUFFIXES)}
    for name, text in files.items():
        (folder / name).write_text(text)
    url, near = f"http://{address}/a.mp4", "good.mp4"
    named = [url, f"concat:{near}|{near}", f"subfile,,start,0,end,9,,:{near}", "pipe:0", f"file://{outside}"]
    named += ["../outside.mp4", str(outside), "good.mp4\0", "a\nb.mp4", "\ud800.mp4", f"tcp://{address}", "/dev/stdin"]
    lines = [json.dumps({"file": name, "caption": "text", "url": url}) for name in (*files, near, *named)]
    (folder / "captions.jsonl").write_text("\n".join(lines))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in (*files, near):
            tar.add(folder / name, name)
            (tmp_path / "a.json").write_text(json.dumps({"caption": "text", "url": url, "file": str(outside)}))
            tar.add(tmp_path / "a.json", f"{name.partition('.')[0]}.json")
    samples = [Sample(name, (folder / name).read_bytes(), ["text"]) for name in (*files, near)]
    write_records(tmp_path / "a.arrayrecord", samples)
    in_folder = FolderSource(folder)
    assert len(in_folder.missing) == len(named)
    for source in (in_folder, TarSource(tmp_path / "a.tar"), RecordSource(tmp_path / "a.arrayrecord")):
        decoded = set()
        for index in range(len(source)):
            try:
                assert len(source[index].pixels_THWC) == 3
                decoded.add(source.source_id(index).rpartition("/")[2])
            except BadClip:
                continue
        assert decoded == {near}
    for path in (url, f"tcp://{address}", f"file://{outside}"):
        with pytest.raises(UserError, match="reads from this machine and gs:// or s3://"):
            FolderSource(path)
    assert calls == []


def disguises(secret: str) -> set[bytes]:
    """Returns the forms in which a secret may be written."""
    plain = secret.encode()
    parts = {urllib.parse.quote(secret, safe=""), json.dumps(secret)[1:-1], *secret.split("@")[0].split(":")[2:]}
    return {plain, plain.hex().encode(), base64.b64encode(plain)[:-4], *(part.encode() for part in parts if part)}


def test_no_secret_of_the_environment_is_in_what_a_run_writes(toy_workdir):
    paths = [path for path in toy_workdir.rglob("*") if path.is_file()]
    names = {path.name for path in paths}
    assert {"config.json", "metrics.jsonl", "report.html", "stdout.txt", "stderr.txt", "run.json"} <= names
    wanted = {form: name for name, secret in SECRETS.items() for form in disguises(secret)}
    found = [(path, wanted[form]) for path in paths for form in wanted if form in path.read_bytes()]
    assert found == []


@pytest.mark.parametrize(
    "path", ["s3://KEY:hunter2@bucket/clips", "gs://hunter2@bucket/{a,b}.tar", "https://me:hunter2@host/a.tar"]
)
def test_an_address_with_a_password_is_refused_and_not_repeated(path):
    with pytest.raises(UserError, match=r"leave it out; gs:// reads GOOGLE_APPLICATION_CREDENTIALS") as caught:
        place(path)
    assert "hunter2" not in str(caught.value)


def test_a_cache_that_others_may_write_to_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    used = []
    monkeypatch.setattr(compiling.jax.config, "update", lambda name, value: used.append((name, value)))
    compiling.use_compilation_cache()
    cache = tmp_path / "sora_jax" / "xla"
    assert used == [("jax_compilation_cache_dir", str(cache))]
    assert cache.stat().st_mode & 0o777 == 0o700
    os.chmod(cache, 0o777)
    with pytest.raises(UserError, match=r"others may write to .*the programs in it are run"):
        compiling.use_compilation_cache()
