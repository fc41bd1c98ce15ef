"""Runs before jax is imported: eight simulated CPU devices, one compilation cache. And a run that tests share."""

import fcntl
import gc
import json
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest
from hypothesis import settings
from ml_collections import ConfigDict

# TEST_PLATFORM=cuda: tests/nn and tests/models/test_transformer.py on one GPU, what needs several devices left out.
PLATFORM = os.environ.get("TEST_PLATFORM", "cpu")
os.environ["JAX_PLATFORMS"] = PLATFORM
NIGHTLY = bool(os.environ.get("NIGHTLY"))  # many more examples, and programs compiled as users compile them
_EIGHT_DEVICES = "--xla_force_host_platform_device_count=8"
# Tests compile much and compute little: programs that are made quickly are worth more than fast ones.
_QUICK_COMPILATION = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_parallel_codegen_split_count=1"
)
if metadata.version("jaxlib").startswith("0.10."):  # later ones do not know it, and end on what they do not know
    _QUICK_COMPILATION += " --xla_cpu_use_fusion_emitters=false"
# One thread for each simulated device, as tests run side by side: XLA's shared pool is reported to wait for itself for
# ever at times. And a device that comes late to a collective is waited for, however busy the machine is.
_PATIENCE = "--xla_cpu_multi_thread_eigen=false --xla_cpu_collective_call_terminate_timeout_seconds=600"
# More threads than devices: with as many as devices one that is held up elsewhere leaves a collective waiting for ever.
os.environ["NPROC"] = "32"
_compilation = "" if NIGHTLY else _QUICK_COMPILATION
if PLATFORM == "cpu":
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_compilation} {_PATIENCE} {_EIGHT_DEVICES}"
else:
    os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"  # else float32 is rounded to 10 bits before it is multiplied
# Never in anything that a run writes: tests/test_security.py looks for them.
SECRETS = {
    "HF_TOKEN": "hf_kEpOuTqWzXvBnMsAdFgHjKl",
    "SORA_CHAT_KEY": "sk-kEpOuT-9XyZqWvUtSrQp",
    "WANDB_API_KEY": "7d1f0c9be2a84635c0ffee00d15ea5e5",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUt/nFEMI+K7MDENG/bPxRfiCYkEpOuT",
    "https_proxy": "http://mallory:pr0xy-kEpOuT@127.0.0.1:9",
}
_CACHE = Path(tempfile.gettempdir()) / "sora_jax_test_compilation_cache"
_cache = os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
if "PYTEST_XDIST_WORKER" in os.environ:  # one each: nobody reads what another has half written
    os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{_cache}/{os.environ['PYTEST_XDIST_WORKER']}"
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

# Tracing makes objects by the thousand that stay, and each time so many are new the collector walks through the young
# ones, or all: with the 700 that Python begins with 6 of the 108 processor seconds of tests/train/test_step.py.
gc.set_threshold(50_000, 20, 20)

# No deadlines: times are those of a machine that others use too.
settings.register_profile("default", deadline=None, max_examples=25)
settings.register_profile("nightly", deadline=None, max_examples=500)
settings.load_profile("nightly" if NIGHTLY else "default")

# Those of half a minute and more, longest first; while the first trains the toy run, the second needs none.
LONGEST = (
    "test_commands.py",
    "test_step.py",
    "test_distributed_run.py",
    "test_prepare.py",
    "test_plan.py",
    "test_train_step.py",
    "test_run.py",
    "test_autoencoder_run.py",
    "test_autoencoder.py",
    "test_export.py",
    "test_replay.py",
)
ROOT = Path(__file__).parents[1]
TOY = "tests/toy.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files that take longest first: a worker that begins one last would end alone."""
    for item in items if PLATFORM != "cpu" else ():
        if item.get_closest_marker("several_devices"):
            item.add_marker(pytest.mark.skip(reason="needs eight devices"))
    items.sort(key=lambda item: LONGEST.index(name) if (name := item.path.name) in LONGEST else len(LONGEST))


def pytest_collection_finish() -> None:
    """Spares the collector what every test has: the modules that collecting imported."""
    gc.freeze()


def pytest_configure() -> None:
    """Marks absl's flags as parsed: grain reads them in its workers."""
    from absl import flags

    flags.FLAGS.mark_as_parsed()


@pytest.fixture(autouse=True, scope="session")
def _programs() -> list[str]:
    """Returns the names of programs that were compiled and not dropped yet."""
    import jax

    made: list[str] = []

    def note(event: str, _: float, fun_name: str = "", **__: object) -> None:
        if event.endswith("backend_compile_duration"):
            made.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(note)
    jax.jit(lambda: 0)()
    assert made, "jax tells of a compiled program in another way: none would ever be dropped"
    return made


@pytest.fixture
def compiled() -> Iterator[list[str]]:
    """Returns the names of programs that are compiled from now on, or found in the cache on disk."""
    import jax

    seen: list[str] = []

    def note(event: str, _: float, fun_name: str = "", **__: object) -> None:
        if event.endswith("backend_compile_duration"):
            seen.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(note)
    yield seen
    jax.monitoring.unregister_event_duration_listener(note)


@pytest.fixture(autouse=True, scope="module")
def _drop_programs(_programs: list[str]) -> Iterator[None]:
    """Drops compiled programs once they are many.

    jax keeps what it made each from, and looks through all of it when it begins another: after 2,000 small programs
    the next takes twice as long. And those of all tests would exceed the 65,530 memory maps that Linux allows.
    """
    import jax

    yield
    if len(_programs) > 600:
        jax.clear_caches()
        _programs.clear()


@pytest.fixture(scope="session")
def python(tmp_path_factory) -> Iterator[Callable[..., subprocess.CompletedProcess]]:
    """Returns a function that runs python as a user does: from the repository, with one device.

    In a fork of tests/forking.py, which is spared the imports, or in a `fresh` interpreter.
    """
    environment = {**os.environ, **SECRETS, "XLA_FLAGS": os.environ.get("XLA_FLAGS", "").replace(_EIGHT_DEVICES, "")}
    # Forks keep the pages they have: they do not start again to get huge ones.
    forking = {"env": {**environment, "GLIBC_TUNABLES": ""}, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    said = [tmp_path_factory.mktemp("said") / name for name in ("stdout", "stderr")]
    with subprocess.Popen([sys.executable, "-m", "tests.forking"], text=True, cwd=ROOT, **forking) as server:
        asks, answers = server.stdin, server.stdout

        def run(*arguments: object, fresh: bool = False) -> subprocess.CompletedProcess:
            command = [*map(str, arguments)]
            if fresh:
                command = [sys.executable, *command]
                return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=600)
            asks.write(json.dumps([command, *map(str, said)]) + "\n")
            asks.flush()
            code = int(answers.readline())
            return subprocess.CompletedProcess(command, code, *(path.read_text() for path in said))

        yield run


@pytest.fixture(scope="session")
def toy_config() -> Callable[[], ConfigDict]:
    """Returns a function that returns the config of the toy run."""
    return runpy.run_path(str(ROOT / TOY))["get_config"]


@pytest.fixture(scope="session")
def toy_workdir(python, tmp_path_factory) -> Path:
    """Returns the workdir of a whole toy run that was never interrupted. Do not write there: copy it.

    Of the workers the first that asks trains it, and every other has a copy, also of the compiled programs.
    """
    workdir, root = tmp_path_factory.mktemp("runs") / "toy", tmp_path_factory.getbasetemp()
    shared = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "toy_run"
    programs = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    with open(f"{shared}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not shared.exists():
            done = python("-m", "sora_jax.main", f"--config={TOY}", f"--workdir={workdir}", fresh=True)
            assert done.returncode == 0, done.stderr
            (workdir / "stdout.txt").write_text(done.stdout)
            (workdir / "stderr.txt").write_text(done.stderr)
            if programs.exists():
                shutil.copytree(programs, f"{shared}_programs")
            shutil.copytree(workdir, shared)
            return workdir
    if Path(f"{shared}_programs").exists():
        shutil.copytree(f"{shared}_programs", programs, dirs_exist_ok=True)
    return Path(shutil.copytree(shared, workdir))
