"""Where the keys of LoRA files belong: names of modules in both namings, also with underscores, to our parameters."""

import dataclasses
from collections.abc import Mapping

from sora_jax.models.interop.wan_names import LAYOUTS, Form, Layout, Name, block_names, rest_names

_BLOCKS = "blocks."


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptedPlace:
    """A module of theirs, or of their transformer itself.

    Attributes:
      ours: Our name of its weight.
      layer: Its block; None: it is in none.
      form: Of its weight.
      bias: Our name of its bias; None: it has none.
    """

    ours: str
    layer: int | None
    form: Form
    bias: str | None

    def takes(self, kind: str) -> bool:
        """Returns whether the module can have a part of an adapter: a factor, its bias or alpha, or a difference."""
        if kind in ("down", "up", "alpha"):
            return self.form == "transpose"
        if kind == "bias of up":
            return self.form == "transpose" and self.bias is not None
        return {"weight": self.form != "convolution", "bias": self.bias is not None}.get(kind, False)

    def of(self, kind: str) -> "AdaptedPlace":
        """Returns the place of a difference of its "weight", or of its "bias" or "bias of up"."""
        if kind == "weight" or self.bias is None:
            return self
        return AdaptedPlace(ours=self.bias, layer=self.layer, form="same", bias=None)


def places_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, AdaptedPlace]:
    """Returns the modules of a transformer whose parameters have these shapes, by all their names."""
    table: dict[str, AdaptedPlace] = {}
    for name in rest_names(image=True, positions=True):
        if name.ours in shapes and not name.ours.endswith(".bias"):
            _note(table, name, shapes, layer=None)
    for name in block_names(image=True):
        if (ours := f"{_BLOCKS}{name.ours}") in shapes and not name.ours.endswith(".bias"):
            for layer in range(shapes[ours][0]):
                _note(table, name, shapes, layer=layer)
    return table


def _note(
    table: dict[str, AdaptedPlace], name: Name, shapes: Mapping[str, tuple[int, ...]], *, layer: int | None
) -> None:
    ours = name.ours if layer is None else f"{_BLOCKS}{name.ours}"
    bias = f"{ours.rpartition('.')[0]}.bias"
    place = AdaptedPlace(ours=ours, layer=layer, form=name.form, bias=bias if bias in shapes else None)
    for layout in LAYOUTS:
        module = _module(name, layout, layer)
        table[module] = table[module.replace(".", "_")] = place


def _module(name: Name, layout: Layout, layer: int | None) -> str:
    block = "" if layer is None else f"{_BLOCKS}{layer}."
    return f"{block}{name.theirs(layout).removesuffix('.weight')}"


def module_of(ours: str, layout: Layout) -> str:
    """Returns their name of the module of one of our kernels, with "{}" where a block has its number; or KeyError."""
    names = {f"{_BLOCKS}{one.ours}": f"{_BLOCKS}{{}}.{one.theirs(layout)}" for one in block_names(image=True)}
    names |= {one.ours: one.theirs(layout) for one in rest_names(image=True, positions=True)}
    return names[ours].removesuffix(".weight")
