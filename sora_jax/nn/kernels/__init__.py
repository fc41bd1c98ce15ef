"""Ways to compute attention within segments; `nn.attention` chooses among them."""
