"""The same train step in plain torch, as a contestant: the public Wan block with the same weights, by Wan's names.

Shapes: B rows, L tokens, G noise levels, K text tokens, P patch width, D width, N heads, H head width. Where clips do
not share a row, a row has one noise level and modulation is (B, 1, D).
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from sora_jax.benchmarks.our_step import LEARNING_RATE, OPTIMIZER
from sora_jax.benchmarks.peers import peer
from sora_jax.models.interop.wan import to_wan
from sora_jax.models.interop.wan_shape import WanShape
from sora_jax.models.transformer_config import TransformerConfig
from sora_jax.nn import rope
from sora_jax.train.reporter import HostBatch

# How a query sees no other keys than it should: no mask at all, keys that are padding hidden, other segments hidden.
Masking = Literal["none", "keys", "segments"]

_EPS = 1e-6
_EMA_DECAY = 0.999


class TorchWan:
    """The transformer as functions of torch tensors; modules would cost the same and say no more.

    Args:
      config: Shape of the transformer.
      device: Of torch, "cpu" or "cuda".
      masking: Which keys are hidden.
    """

    def __init__(self, config: TransformerConfig, *, device: str, masking: Masking):
        self.torch = peer("torch")
        self.config, self.device, self.masking = config, device, masking
        # One kernel per tile of the mask that anything is seen in; SDPA's kernels take no segments.
        self._flex = peer("torch.nn.attention.flex_attention") if device == "cuda" and masking == "segments" else None

    def weights(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Returns our parameters as torch's, by Wan's names, the patch embedding as a matrix over our patches."""
        text_dim, patch_width = (
            params["condition_embedder.text_in.kernel"].shape[0],
            params["proj_out.kernel"].shape[1],
        )
        weights = to_wan(params, WanShape.of(self.config, patch_width=patch_width, text_dim=text_dim))
        kernel = weights["patch_embedding.weight"]
        weights["patch_embedding.weight"] = kernel.transpose(0, 2, 3, 4, 1).reshape(len(kernel), -1)
        return {name: self._parameter(value) for name, value in weights.items()}

    def _parameter(self, value: np.ndarray) -> Any:
        return self.torch.nn.Parameter(self.torch.from_numpy(np.array(value, order="C")).to(self.device))

    def put(self, batch: HostBatch) -> dict[str, Any]:
        """Returns a batch on the device: what `predict` takes, `target_BLP` and `real_BL`."""
        torch, config = self.torch, self.config
        segments = batch["levels_BG"].shape[1] // 2
        cos, sin = rope.rotations(jnp.asarray(batch["position_BL3"]), config.width // config.heads, config.rope_theta)
        arrays = {
            "tokens": batch["tokens_BLP"],
            "target": batch["target_BLP"],
            "real": batch["segment_BL"] > 0,
            "levels": batch["levels_BG"][:, :segments],
            # Ours are for both numbers of a pair, the sine of the first negative.
            "cos": np.asarray(cos)[:, None, :, 1::2],
            "sin": np.asarray(sin)[:, None, :, 1::2],
            "text": batch["text_BKE"],
        }
        if segments > 1:
            arrays["level"] = batch["level_BL"].astype(np.int64)
        put = {name: torch.from_numpy(np.array(value, order="C")).to(self.device) for name, value in arrays.items()}
        return put | self._masks(batch)

    def _masks(self, batch: HostBatch) -> dict[str, Any]:
        """Returns what hides keys from queries in self-attention and in attention to the text, None for nothing."""
        segment_BL, text_BK = (
            self.torch.from_numpy(batch[name]).to(self.device) for name in ("segment_BL", "text_segment_BK")
        )
        if self.masking == "none":
            return {"mask": None, "text_mask": None}
        if self.masking == "keys":
            # Every clip has all of its text tokens. Padding may look at them, too: nobody looks at padding.
            return {"mask": (segment_BL > 0)[:, None, None, :], "text_mask": None}
        return {
            "mask": self._segment_mask(segment_BL, segment_BL),
            "text_mask": self._segment_mask(segment_BL, text_BK),
        }

    def _segment_mask(self, query_BL: Any, key_BM: Any) -> Any:
        if self._flex is None:
            # Padding sees padding, which is harmless where nothing at all would give not-a-number.
            return (query_BL[:, :, None] == key_BM[:, None, :])[:, None] | (query_BL == 0)[:, None, :, None]

        def seen(b: Any, _: Any, q: Any, k: Any) -> Any:
            return query_BL[b, q] == key_BM[b, k]

        rows, length = query_BL.shape
        return self._flex.create_block_mask(seen, rows, None, length, key_BM.shape[1], device=self.device)

    def predict(self, w: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
        """Returns prediction_BLP of a batch that was `put`."""
        torch, config = self.torch, self.config
        nn = torch.nn.functional
        embed = "condition_embedder"
        features = self._sinusoid(batch["levels"] * 1000.0)
        level_BGD = self._two_layers(w, f"{embed}.time_embedder", features, nn.silu)
        modulation = self._linear(w, f"{embed}.time_proj", nn.silu(level_BGD)).unflatten(-1, (6, -1))
        gelu = self._gelu
        text_BKD = self._two_layers(w, f"{embed}.text_embedder", batch["text"], gelu)
        x = self._linear(w, "patch_embedding", batch["tokens"])
        for number in range(config.depth):
            x = self._block(w, f"blocks.{number}", x, modulation, text_BKD, batch)
        table = (w["scale_shift_table"][:, None] + level_BGD[:, :, None]).float()
        shift, scale = (self._of_token(table[:, :, part], batch) for part in range(2))
        return self._linear(w, "proj_out", self._modulated(x, shift, scale)).float()

    def _block(self, w: Any, name: str, x: Any, modulation: Any, text_BKD: Any, batch: Any) -> Any:
        nn, width = self.torch.nn.functional, (self.config.width,)
        table = w[f"{name}.scale_shift_table"][:, None] + modulation.float()
        shift1, scale1, gate1, shift3, scale3, gate3 = (self._of_token(table[:, :, part], batch) for part in range(6))
        y = self._modulated(x, shift1, scale1)
        mixed = self._attention(w, f"{name}.attn1", y, y, batch["mask"], (batch["cos"], batch["sin"]))
        x = (x + mixed * gate1).to(x.dtype)
        y = nn.layer_norm(x, width, w[f"{name}.norm2.weight"], w[f"{name}.norm2.bias"], _EPS).to(x.dtype)
        x = x + self._attention(w, f"{name}.attn2", y, text_BKD, batch["text_mask"], None)
        y = self._modulated(x, shift3, scale3)
        y = self._linear(w, f"{name}.ffn.net.2", self._gelu(self._linear(w, f"{name}.ffn.net.0.proj", y)))
        return (x + y * gate3).to(x.dtype)

    def _attention(self, w: Any, name: str, x: Any, context: Any, mask: Any, rotation: Any) -> Any:
        nn, heads, width = self.torch.nn.functional, self.config.heads, (self.config.width,)

        def split(y: Any) -> Any:
            return y.unflatten(-1, (heads, -1)).transpose(1, 2)

        query = nn.rms_norm(self._linear(w, f"{name}.to_q", x), width, w[f"{name}.norm_q.weight"], _EPS)
        key = nn.rms_norm(self._linear(w, f"{name}.to_k", context), width, w[f"{name}.norm_k.weight"], _EPS)
        value = split(self._linear(w, f"{name}.to_v", context))
        query, key = split(query), split(key)
        if rotation is not None:
            query, key = self._rotate(query, rotation), self._rotate(key, rotation)
        query, key = query.to(value.dtype), key.to(value.dtype)
        if self._flex is not None:
            mixed = self._flex.flex_attention(query, key, value, block_mask=mask)
        else:
            mixed = nn.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self._linear(w, f"{name}.to_out.0", mixed.transpose(1, 2).flatten(2))

    def _rotate(self, x_BNLH: Any, rotation: Any) -> Any:
        cos, sin = rotation
        even, odd = x_BNLH.float().unflatten(-1, (-1, 2)).unbind(-1)
        return self.torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)

    def _modulated(self, x: Any, shift: Any, scale: Any) -> Any:
        normed = self.torch.nn.functional.layer_norm(x, (self.config.width,), eps=_EPS)
        return (normed * (1 + scale) + shift).to(x.dtype)

    def _of_token(self, table_BGD: Any, batch: Any) -> Any:
        """Returns the entry of each token's noise level, (B, L, D), or (B, 1, D) where a row has one level."""
        if "level" not in batch:
            return table_BGD
        level = batch["level"][..., None].expand(-1, -1, table_BGD.shape[-1])
        return self.torch.gather(table_BGD, 1, level)

    def _two_layers(self, w: Any, name: str, x: Any, activation: Callable[[Any], Any]) -> Any:
        return self._linear(w, f"{name}.linear_2", activation(self._linear(w, f"{name}.linear_1", x)))

    def _linear(self, w: Any, name: str, x: Any) -> Any:
        return self.torch.nn.functional.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def _gelu(self, x: Any) -> Any:
        return self.torch.nn.functional.gelu(x, approximate="tanh")

    def _sinusoid(self, x: Any) -> Any:
        half = self.config.frequency_dim // 2
        power = self.torch.arange(half, device=self.device) / half
        angle = x[..., None] * 10_000.0**-power
        return self.torch.cat((self.torch.cos(angle), self.torch.sin(angle)), dim=-1)


class TorchStep:
    """Trains with one state, whatever hides the keys: bfloat16 autocast on a GPU, AdamW, clipped, averaged weights."""

    def __init__(self, config: TransformerConfig, params: Mapping[str, Any], *, device: str, compiled: bool):
        self._torch, self._config, self._params = peer("torch"), config, params
        self._device, self._compiled = device, compiled
        self.reset()

    def reset(self) -> None:
        """Takes the first weights again, and forgets all moments."""
        torch = self._torch
        self._weights = self.model("none").weights(self._params)
        matrices = [value for name, value in self._weights.items() if value.ndim == 2 and name.endswith("weight")]
        others = [value for value in self._weights.values() if not any(value is matrix for matrix in matrices)]
        self._parameters = matrices + others
        self._optimizer = torch.optim.AdamW(
            [{"params": matrices}, {"params": others, "weight_decay": 0.0}],
            lr=LEARNING_RATE,
            betas=(OPTIMIZER.b1, OPTIMIZER.b2),
            eps=1e-8,
            weight_decay=OPTIMIZER.weight_decay,
            fused=True,
        )
        self._ema = [value.detach().clone() for value in self._parameters]

    def model(self, masking: Masking) -> TorchWan:
        """Returns the transformer that hides keys in this way."""
        return TorchWan(self._config, device=self._device, masking=masking)

    def loss_of(self, model: TorchWan) -> Callable[[Any, Any], Any]:
        """Returns (weights, batch) -> mean squared error over real tokens, compiled if it is to be."""

        def mean_error(weights: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
            error_BL = (model.predict(weights, batch) - batch["target"]).square().mean(-1)
            return (error_BL * batch["real"]).sum() / batch["real"].sum()

        return self._torch.compile(mean_error) if self._compiled else mean_error

    def train(self, loss_of: Callable[[Any, Any], Any], batches: list[dict[str, Any]]) -> list[float]:
        """Returns the losses of a step with each batch, when all are done."""
        torch, losses = self._torch, []
        for batch in batches:
            with torch.autocast(self._device, torch.bfloat16, enabled=self._device == "cuda"):
                loss = loss_of(self._weights, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._parameters, OPTIMIZER.clip_norm)
            self._optimizer.step()
            self._optimizer.zero_grad()
            with torch.no_grad():
                torch._foreach_lerp_(self._ema, self._parameters, 1 - _EMA_DECAY)
            losses.append(loss.detach())
        return [float(loss) for loss in losses]
