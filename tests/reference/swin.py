"""A Swin Transformer from https://arxiv.org/abs/2103.14030 with timm's names, up to the tokens of its last stage."""

import math

import torch
from torch import nn
from vit import Mlp, PatchEmbed


class WindowAttention(nn.Module):
    def __init__(self, dim: int, heads: int, window: int):
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))

    def forward(self, x: torch.Tensor, apart: torch.Tensor) -> torch.Tensor:
        """`x` is (images, windows, tokens, dim); `apart` (windows, tokens, tokens) says who may not look at whom."""
        *sizes, n, d = x.shape
        parts = self.qkv(x).reshape(*sizes, n, 3, self.heads, d // self.heads)
        q, k, v = parts.movedim(-3, 0).transpose(-3, -2)
        scores = q @ k.transpose(-2, -1) / math.sqrt(d // self.heads)
        for one in range(n):
            for other in range(n):
                down = one // self.window - other // self.window + self.window - 1
                right = one % self.window - other % self.window + self.window - 1
                row = self.relative_position_bias_table[down * (2 * self.window - 1) + right]
                scores[..., one, other] = scores[..., one, other] + row
        scores = scores - 100.0 * apart[:, None]
        return self.proj((scores.softmax(-1) @ v).transpose(-3, -2).reshape(*sizes, n, d))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, window: int, shift: int):
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-5), nn.LayerNorm(dim, eps=1e-5)
        self.attn = WindowAttention(dim, heads, window)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` is (images, rows, columns, dim)."""
        w, s, (b, rows, columns, d) = self.window, self.shift, x.shape
        # What is rolled over an edge belongs to another part of the image.
        parts = torch.zeros(1, rows, columns, 1)
        parts[:, :s] += 1
        parts[:, :, :s] += 2
        cut = lambda x: x.reshape(len(x), rows // w, w, columns // w, w, -1).transpose(2, 3).flatten(3, 4).flatten(1, 2)  # noqa: E731
        roll = lambda x, by: x.roll((by, by), dims=(1, 2))  # noqa: E731
        part = cut(roll(parts, -s))[0, ..., 0]
        windows = self.attn(cut(roll(self.norm1(x), -s)), (part[:, :, None] != part[:, None]).to(x.dtype))
        back = windows.reshape(b, rows // w, columns // w, w, w, d).transpose(2, 3).reshape(x.shape)
        x = x + roll(back, s)
        return x + self.mlp(self.norm2(x))


class Downsample(nn.Module):
    """Four tokens become one: the left ones from above, then the right ones."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, eps=1e-5)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        four = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
        return self.reduction(self.norm(torch.cat(four, dim=-1)))


class Stage(nn.Module):
    def __init__(self, dim: int, depth: int, window: int, side: int, first: bool):
        super().__init__()
        self.downsample = nn.Identity() if first else Downsample(dim // 2)
        shift = window // 2 if side > window else 0
        self.blocks = nn.Sequential(*(Block(dim, dim // 32, window, shift * (i % 2)) for i in range(depth)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.downsample(x))


class SwinEmbed(PatchEmbed):
    def __init__(self, dim: int, patch: int):
        super().__init__(dim, patch)
        self.norm = nn.LayerNorm(dim, eps=1e-5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(super().forward(x))


class Swin(nn.Module):
    """Its heads are 32 channels wide."""

    def __init__(self, size: int, patch: int, dim: int, depths: list, window: int):
        super().__init__()
        self.patch_embed = SwinEmbed(dim, patch)
        side = size // patch
        self.layers = nn.ModuleList(
            Stage(dim << i, depth, min(window, side >> i), side >> i, first=i == 0) for i, depth in enumerate(depths)
        )
        self.norm = nn.LayerNorm(dim << len(depths) - 1, eps=1e-5)

    def run(self, patches: torch.Tensor) -> torch.Tensor:
        """From the tokens of the patches to those after the last norm, (images, tokens, dim)."""
        side = math.isqrt(patches.shape[1])
        x = patches.unflatten(1, (side, side))
        for stage in self.layers:
            x = stage(x)
        return self.norm(x.flatten(1, 2))
