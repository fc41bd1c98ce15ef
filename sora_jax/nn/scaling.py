"""Rates that carry over from a narrow network to a wide one: the maximal update parametrisation (muP).

After the tables of arXiv 2505.15270 for diffusion transformers (Adam) and of arXiv 2310.17813 (matrices whose update
has a given spectral norm, as of Muon). What a network of m times the base width has, by what it has at that width:

| parameters                        | fan in | fan out | deviation at first | rate, AdamW | rate, Muon |
|-----------------------------------|--------|---------|--------------------|-------------|------------|
| inputs (patches, levels, text)    | 1      | m       | as at the base     | 1           | 1          |
| hidden (attention, MLP, levels)   | m      | m       | m^-1/2             | 1/m         | m^-1/2     |
| outputs (the last map)            | m      | 1       | 0                  | 1/m         | 1/m        |
| biases, gains, embeddings         |        |         | as at the base     | 1           | 1          |

Which row a kernel is of is read off its shape at both widths. That table multiplies what the last map gives by 1/m, at
an unchanged rate. As this map begins at zero, its rate 1/m does the same, and weights mean what they do without muP.
Biases, gains and embeddings are given to NAdam where matrices are to Muon. Heads keep their width, there are more of
them: scores need no other scale. The decay of weights is left alone.
"""

import math


def fans(shape: tuple[int, ...], axes: tuple[str | None, ...]) -> tuple[int, int]:
    """Returns (fan in, fan out) of a kernel: all its dimensions but the last, and the layers, are of the input."""
    inputs = shape[1:-1] if axes[0] == "layers" else shape[:-1]
    return math.prod(inputs), shape[-1]


def rate_multiplier(
    shape: tuple[int, ...], base: tuple[int, ...], axes: tuple[str | None, ...], *, orthogonal: bool
) -> float:
    """Returns what the rate of a kernel is multiplied by; 1 where it has the shape that it has at the base width.

    `orthogonal` are the updates of Muon, which `train.muon` makes as large as Adam's: their spectral norm is the root
    of the longer side, where the root of fan out over fan in carries over.
    """
    (fan_in, fan_out), (base_in, base_out) = fans(shape, axes), fans(base, axes)
    if not orthogonal:
        return base_in / fan_in
    wanted = (fan_out / fan_in) / (base_out / base_in)
    return math.sqrt(wanted * max(base_in, base_out) / max(fan_in, fan_out))
