"""How much a frozen text encoder tells of words that no caption has, to a linear classifier of its states.

  python -m sora_jax.benchmarks.readout --config.text.encoder=minilm --json=FILE

A transformer that is trained on captions learns what their words mean; of another word it has the encoder's states
alone. Words of a colour or a shape, each in the same sentence, are classified by ridge regression on the mean of the
states: each word of the captions by what is fitted to all others, and the words of `benchmarks/reworded.py` by what is
fitted to all of those. Where a run follows new words about as often as these are read, its encoder is what limits it.

Letters: N words, V classes, E width of the states.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from sora_jax.benchmarks.figures import Figure, publish
from sora_jax.benchmarks.reworded import COLOUR_WORDS, SHAPE_WORDS
from sora_jax.core.commands import Flags, run_command
from sora_jax.core.errors import UserError
from sora_jax.data.sources import shapes_wordings
from sora_jax.data.tokens import Tokenizer
from sora_jax.experiment.settings import read_settings

_FLAGS = Flags()
_CONFIG = _FLAGS.config("config", "configs/base.py", "Whose text encoder is read; it must be a frozen one.")
_JSON = _FLAGS.figures()

_COLOURS, _SHAPES, *_ = shapes_wordings.TABLES
# (what is read, the sentence, words of captions, words that none has)
_READ = (
    ("colour", "a {} circle moves left on a dark background", _COLOURS, COLOUR_WORDS),
    ("shape", "a red {} moves left on a dark background", _SHAPES, SHAPE_WORDS),
)
# Of the mean square of the states: the best for words that are left out lies here, within 0.05 from 1 to 10.
_RIDGE = 3.0

Words = Mapping[str, Sequence[str]]


def main(_: Sequence[str]) -> None:
    """Measures and publishes."""
    text = read_settings(_CONFIG.value).text_encoder
    if not text.tokenizer.stored:
        raise UserError(
            "the text encoder of the config is trained with the model: pass a frozen one, --config.text.encoder=minilm"
        )
    figures = []
    for what, sentence, known, unseen in _READ:
        # A word with the name of a class in it, such as "dark red", is not a new one.
        new = {name: [word for word in words if not any(one in word for one in known)] for name, words in known.items()}
        names = {what: list(known)}
        (name_VE,), *others = (_states(text.tokenizer, sentence, words) for words in (names, new, unseen))
        figures += figures_of(what, name_VE, *others)
    publish(figures, _JSON.value)


def _states(tokenizer: Tokenizer, sentence: str, words: Words) -> list[np.ndarray]:
    """Returns of each class the mean states of its words in the sentence, (N, E)."""
    found = []
    for each in words.values():
        texts = tokenizer.encode([sentence.format(word) for word in each])
        found.append(np.stack([text["text_BKE"].astype(np.float64).mean(axis=0) for text in texts]))
    return found


def figures_of(
    what: str, name_VE: np.ndarray, known: Sequence[np.ndarray], unseen: Sequence[np.ndarray]
) -> list[Figure]:
    """Returns the shares that are read right: states of the classes' names, of known words and of unseen ones."""
    classes = np.arange(len(name_VE))
    known_NE, class_N = np.concatenate(known), np.repeat(classes, [len(one) for one in known])
    right = []
    for index, class_ in enumerate(class_N):
        others_NE, other_N = np.delete(known_NE, index, axis=0), np.delete(class_N, index)
        read = classify(known_NE[[index]], np.concatenate([name_VE, others_NE]), np.concatenate([classes, other_N]))
        right.append(read[0] == class_)
    every_NE, every_N = np.concatenate([name_VE, known_NE]), np.concatenate([classes, class_N])
    asked_N = np.repeat(classes, [len(one) for one in unseen])
    found_N = classify(np.concatenate(unseen), every_NE, every_N)
    return [
        _figure(f"{what}_left_out", right, f"{what} of words of captions, each read by what is fitted to the others"),
        _figure(f"{what}_unseen", found_N == asked_N, f"{what} of words that no caption has"),
    ]


def classify(asked_NE: np.ndarray, state_NE: np.ndarray, class_N: np.ndarray) -> np.ndarray:
    """Returns the class of each state by ridge regression on others, in which every class weighs the same."""
    count, width = class_N.max() + 1, state_NE.shape[1]
    weight_N1 = (1 / np.bincount(class_N))[class_N, None] / count
    mean_E = (weight_N1 * state_NE).sum(axis=0)
    x_NE = state_NE - mean_E
    square_EE = (weight_N1 * x_NE).T @ x_NE
    ridge_EE = _RIDGE * np.trace(square_EE) / width * np.eye(width)
    kernel_EV = np.linalg.solve(square_EE + ridge_EE, (weight_N1 * x_NE).T @ (np.eye(count)[class_N] - 1 / count))
    return ((asked_NE - mean_E) @ kernel_EV).argmax(axis=1)


def _figure(name: str, right: Sequence[bool] | np.ndarray, meaning: str) -> Figure:
    return Figure(name=name, value=float(np.mean(right)), target=None, meaning=f"share of {len(right)}: {meaning}")


if __name__ == "__main__":
    run_command(main, _FLAGS)
