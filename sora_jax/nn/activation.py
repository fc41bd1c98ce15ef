"""The nonlinearity of feed-forwards."""

import jax

# Its gradient is computed from the input alone; jax would keep four more arrays of the feed-forward's width. Inside the
# loop over blocks nothing has to keep the compiler from merging what is computed twice.
gelu = jax.checkpoint(jax.nn.gelu, prevent_cse=False)
