"""Descriptions of models that are as small as a test can use, for `--config`."""

from __future__ import annotations

TINY = """\
tokens_type = "performer"
embed_dim = 16
depth = 2
num_heads = 2
mlp_ratio = 2.0
token_dim = 16
image_size = 32
num_classes = 10
"""
# dimensions whose 8-bit graph is within its tolerance
TINY_FOR_8_BITS = """\
tokens_type = "performer"
embed_dim = 64
depth = 2
num_heads = 2
mlp_ratio = 2.0
token_dim = 32
image_size = 32
num_classes = 2
"""
