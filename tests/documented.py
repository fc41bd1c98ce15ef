"""Reads the flags of every command that the documentation shows, as its command would, and says which are wrong.

A process of its own: flags of absl are of the process.
"""

import importlib
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from absl.flags import FLAGS

ROOT = Path(__file__).parents[1]
# What stands for something of the reader's is no command yet.
_OPEN = re.compile(r"\.\.\.|[=:](VARIANT|SLICE|CONFIG)\b|=control_lora\.py")
_COMMAND = re.compile(r"python -m (sora_jax[\w.]*\w)([^`\n]*)")


def commands() -> dict[tuple[str, ...], str]:
    """Returns the commands with flags, as python takes them, and where each stands first."""
    paths = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    for pattern in ("docs/*.md", "configs/*.py", "sora_jax/*.py", "sora_jax/benchmarks/*.py"):
        paths += sorted(ROOT.glob(pattern))
    found = {}
    for path in paths:
        for module, rest in _COMMAND.findall(re.sub(r"\\\n\s*", " ", path.read_text())):
            if "--" in rest and not _OPEN.search(rest):
                found.setdefault((module, *arguments_of(rest)), path.relative_to(ROOT).as_posix())
    return found


def arguments_of(rest: str) -> list[str]:
    """Returns the arguments of a line of a shell, up to its comment, its pipe or the next command."""
    lexer = shlex.shlex(rest, posix=True, punctuation_chars=">|&;")
    lexer.whitespace_split = True
    words = list(lexer)
    return words[: next((at for at, word in enumerate(words) if set(word) <= set(">|&;")), len(words))]


def fault(module: str, arguments: Sequence[str]) -> str | None:
    """Returns what is wrong with the flags of a command, or None."""
    own, others = importlib.import_module(module)._FLAGS, set(FLAGS)
    sys.argv = [module, *arguments]  # where keys of configs are looked up
    takes_words = module.endswith(".supervise")
    FLAGS.set_gnu_getopt(not takes_words)
    own.define()
    try:
        words = FLAGS(sys.argv)[1:]
        if "config" in FLAGS:
            # A file that cannot be read says so only when it is looked into.
            _ = "run" in (FLAGS["config"].value or ())
        return f"unknown argument {words[0]!r}" if words and not takes_words else None
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        for name in set(FLAGS) - others:
            delattr(FLAGS, name)


def main() -> None:
    """Prints a line for each command with a fault, or, given a command, for that."""
    asked = {tuple(sys.argv[1:]): "given"} if sys.argv[1:] else commands()
    for (module, *arguments), path in asked.items():
        if found := fault(module, arguments):
            print(f"{path}: {module} {shlex.join(arguments)}: {found}")


if __name__ == "__main__":
    main()
