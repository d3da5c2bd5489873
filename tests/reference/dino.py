"""Three training steps of DINO in float64, from section 3.1 and algorithm 1 of https://arxiv.org/abs/2104.14294.

    python tests/reference/dino.py [--float32]

Made with torch 2.9.1, torchvision 0.24.1, numpy and safetensors. The student sees two global and two local crops, the
teacher the global ones; all crops of one size pass a network together. The prototypes are frozen in the first of two
epochs, and the teacher's temperature rises from one epoch to the next. The centre moves after the loss has used it, by the
mean of the teacher's scores; the teacher follows by a momentum that rises to 1 along a cosine.
"""

import math

import torch
from steps import ADAMW, SGD, follow, frozen, main, noisy_views
from torch import nn
from torch.nn.functional import gelu, normalize
from vit import Vit

SIZE, PATCH, DIM, DEPTH = 8, 4, 128, 2
HIDDEN, BOTTLENECK, PROTOTYPES = 16, 6, 5
STEPS_PER_EPOCH, TOTAL_STEPS, MOMENTUM, CENTER_MOMENTUM = 2, 6, 0.7, 0.9
STUDENT, TEACHER = 0.1, [0.04, 0.06]


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        layers = {"0": nn.Linear(DIM, HIDDEN), "2": nn.Linear(HIDDEN, HIDDEN), "4": nn.Linear(HIDDEN, BOTTLENECK)}
        self.mlp = nn.ModuleDict(layers)
        self.last_layer = nn.Module()
        self.last_layer.weight_g = nn.Parameter(torch.ones(PROTOTYPES, 1))
        self.last_layer.weight_v = nn.Parameter(torch.zeros(PROTOTYPES, BOTTLENECK))

    def forward(self, x: torch.Tensor, freeze: bool = False) -> torch.Tensor:
        z = self.mlp["4"](gelu(self.mlp["2"](gelu(self.mlp["0"](x)))))
        g, v = self.last_layer.weight_g, self.last_layer.weight_v
        weight = g * v / v.norm(dim=1, keepdim=True)
        return normalize(z, dim=-1) @ (weight.detach() if freeze else weight).T


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.head = Vit(SIZE, PATCH, DIM, DEPTH, learned=True), Head()

    def forward(self, crops: list, freeze: bool = False) -> list:
        sizes = list(dict.fromkeys(crop.shape[-1] for crop in crops))
        h = torch.cat([self.backbone(torch.cat([c for c in crops if c.shape[-1] == size]))[:, 0] for size in sizes])
        return self.head(h, freeze).chunk(len(crops))


class Dino(Network):
    def __init__(self):
        super().__init__()
        self.teacher = frozen(Network())
        self.register_buffer("center", torch.zeros(PROTOTYPES))

    def loss(self, crops: list, step: int) -> torch.Tensor:
        epoch = step // STEPS_PER_EPOCH
        student = [(g / STUDENT).log_softmax(dim=1) for g in self(crops, freeze=epoch == 0)]
        self.scores = torch.cat(self.teacher(crops[:2]))
        teacher = ((self.scores - self.center) / TEACHER[min(epoch, 1)]).softmax(dim=1).chunk(2)
        pairs = [(t, s) for t in range(2) for s in range(len(crops)) if s != t]
        return sum(-(teacher[t] * student[s]).sum(dim=1).mean() for t, s in pairs) / len(pairs)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        momentum = 1 - (1 - MOMENTUM) * (math.cos(math.pi * step / TOTAL_STEPS) + 1) / 2
        follow(self.teacher, self, momentum)
        self.center.mul_(CENTER_MOMENTUM).add_((1 - CENTER_MOMENTUM) * self.scores.mean(dim=0))


if __name__ == "__main__":
    main(
        "dino",
        Dino,
        noisy_views(3, [SIZE, SIZE, PATCH, PATCH]),
        method={
            "name": "dino",
            "head_hidden": HIDDEN,
            "bottleneck_dim": BOTTLENECK,
            "prototypes": PROTOTYPES,
            "norm_last_layer": False,
            "freeze_last_layer_epochs": 1,
            "student_temperature": STUDENT,
            "teacher_temperature": TEACHER[1],
            "warmup_teacher_temperature": TEACHER[0],
            "warmup_teacher_temperature_epochs": 2,
            "center_momentum": CENTER_MOMENTUM,
            "momentum": MOMENTUM,
        },
        backbone={"name": "vit_tiny", "image_size": SIZE, "patch_size": PATCH, "width": DIM, "depth": DEPTH},
        runs={"sgd": SGD | {"lr": 0.01, "movement_tolerance": 4e-4}, "adamw": ADAMW},
        steps_per_epoch=STEPS_PER_EPOCH,
        total_steps=TOTAL_STEPS,
        chosen=[
            "backbone.cls_token",
            "backbone.pos_embed",
            "backbone.blocks.1.attn.qkv.bias",
            "backbone.blocks.0.mlp.fc1.bias",
            "head.mlp.0.weight",
            "head.last_layer.weight_g",
            "head.last_layer.weight_v",
            "teacher.backbone.norm.weight",
            "teacher.head.last_layer.weight_v",
            "center",
        ],
        notes="Three steps of DINO on one batch of two global and two local crops.",
    )
