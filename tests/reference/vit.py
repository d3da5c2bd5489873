"""A vision transformer from https://arxiv.org/abs/2010.11929 with timm's names, token by token, and the parts that methods for
masked images give it."""

import math

import torch
from torch import nn


# `Vit(…, beit=True)` as the table `backbone.vit` of a recipe.
BEIT = {
    "positions": "none",
    "relative_positions": "shared",
    "layer_scale": 0.1,
    "qkv_bias": "query_value",
    "init": "beit",
}


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, query_value_bias: bool):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=not query_value_bias)
        if query_value_bias:
            self.q_bias, self.v_bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        b, n, d = x.shape
        qkv = self.qkv(x)
        if hasattr(self, "q_bias"):
            qkv = qkv + torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        q, k, v = qkv.reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / math.sqrt(d // self.heads)
        if bias is not None:
            scores = scores + bias
        return self.proj((scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(b, n, d))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class Block(nn.Module):
    """With BEiT's factors `gamma_1` and `gamma_2` and biases of queries and values if `beit`."""

    def __init__(self, dim: int, heads: int, beit: bool = False):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads, beit)
        self.mlp = Mlp(dim, 4 * dim)
        if beit:
            self.gamma_1, self.gamma_2 = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        one = getattr(self, "gamma_1", 1.0)
        two = getattr(self, "gamma_2", 1.0)
        x = x + one * self.attn(self.norm1(x), bias)
        return x + two * self.mlp(self.norm2(x))


class RelativePositions(nn.Module):
    """The biases of BEiT's code for a grid of patches with a class token before them."""

    def __init__(self, side: int, heads: int):
        super().__init__()
        distances = (2 * side - 1) ** 2
        self.relative_position_bias_table = nn.Parameter(torch.zeros(distances + 3, heads))
        y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        y, x = y.flatten(), x.flatten()
        dy, dx = y[:, None] - y[None, :] + side - 1, x[:, None] - x[None, :] + side - 1
        self.index = torch.full((side**2 + 1, side**2 + 1), distances + 2)
        self.index[1:, 1:] = dy * (2 * side - 1) + dx
        self.index[0, 1:], self.index[1:, 0] = distances, distances + 1

    def forward(self) -> torch.Tensor:
        return self.relative_position_bias_table[self.index].permute(2, 0, 1)


class PatchEmbed(nn.Module):
    def __init__(self, dim: int, patch: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=patch, stride=patch)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class Vit(nn.Module):
    """Patches, class token and blocks; with learned or fixed positions, or with `beit` shared relative ones and no others."""

    def __init__(self, size: int, patch: int, dim: int, depth: int, beit: bool = False, learned: bool = False):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        if learned:
            self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (size // patch) ** 2, dim))
        elif not beit:
            self.register_buffer("pos_embed", sin_cos(dim, size // patch))
        self.patch_embed = PatchEmbed(dim, patch)
        self.blocks = nn.ModuleList(Block(dim, dim // 64, beit) for _ in range(depth))
        if beit:
            self.rel_pos_bias = RelativePositions(size // patch, dim // 64)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def run(self, patches: torch.Tensor) -> torch.Tensor:
        """The tokens after the last norm, from those of patches with their positions; the class token is put before them."""
        own = self.cls_token + (self.pos_embed[:, :1] if hasattr(self, "pos_embed") else 0)
        x = torch.cat([own.expand(len(patches), -1, -1), patches], dim=1)
        bias = self.rel_pos_bias() if hasattr(self, "rel_pos_bias") else None
        for block in self.blocks:
            x = block(x, bias)
        return self.norm(x)

    def positions(self, side: int) -> torch.Tensor:
        """Those of the patches of a square grid, interpolated if it is another one."""
        p = self.pos_embed[:, 1:]
        own = math.isqrt(p.shape[1])
        if side != own:
            p = p.reshape(1, own, own, -1).permute(0, 3, 1, 2)
            p = nn.functional.interpolate(p, size=(side, side), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
        return p

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """All tokens of images with learned positions."""
        patches = self.patch_embed(images)
        return self.run(patches + self.positions(math.isqrt(patches.shape[1])))


def sin_cos(dim: int, side: int) -> torch.Tensor:
    """MAE's positions of a square grid, float32: half the channels tell the column, half the row; zeros for the class token."""
    omega = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    halves = [at.flatten()[:, None] * omega for at in (columns, rows)]
    table = torch.cat([f(half) for half in halves for f in (torch.sin, torch.cos)], dim=1)
    return torch.cat([torch.zeros(1, dim), table.float()])[None]
