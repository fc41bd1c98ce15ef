"""What clips are known by beside their captions, or in the place of them.

Letters: N samples, E numbers of an embedding.
"""

import dataclasses

import numpy as np

from sora_jax.core import rng
from sora_jax.data.shards.embeddings import EmbeddedBy

# Chances that an embedding is left out, beside a caption and alone: a model learns from text alone, and guidance needs
# what it makes of nothing. Ours; compare unCLIP's 0.1 for the embedding and 0.5 for the text (arXiv 2204.06125).
DROPOUT = (0.5, 0.1)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ClipEmbeddings:
    """An embedding of each prepared clip, and how often it is left out of a draw.

    Attributes:
      embedding_NE: float32, of length 1.
      made_by: What made them.
      dropout: The chance, beside a caption and alone, in [0, 1).
    """

    embedding_NE: np.ndarray
    made_by: EmbeddedBy
    dropout: tuple[float, float] = DROPOUT

    @property
    def width(self) -> int:
        """E."""
        return self.embedding_NE.shape[1]

    def facts(self) -> dict[str, object]:
        """Returns what the packs depend on, fit for JSON."""
        return {"captioner": self.made_by.digest, "dropout": list(self.dropout)}

    def drawn(self, index: int, caption: str, *, seed: int, draw: int) -> np.ndarray | None:
        """Returns the embedding of a clip, whose caption is empty where it has none; None where it is left out."""
        beside, alone = self.dropout
        left_out = rng.generator(seed, "embedding dropout", draw).random() < (beside if caption else alone)
        return None if left_out else self.embedding_NE[index]
