"""Three training steps of MoCo v2 in float64, from algorithm 1 of https://arxiv.org/abs/1911.05722.

    python tests/reference/moco_v2.py [--float32]

Made with torch 2.9.1, torchvision 0.24.1, numpy and safetensors. The head is Linear, ReLU, Linear. The queue has room for
two steps, so that the third writes over the first one's keys.
"""

import torch
from steps import ADAMW, LARS, SGD, WIDTH, follow, frozen, main, noisy_views, resnet18
from torch import nn
from torch.nn.functional import normalize

HIDDEN, DIM = 16, 12
TEMPERATURE, MOMENTUM, QUEUE = 0.2, 0.9, 12


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = resnet18()
        self.projector = nn.Sequential(nn.Linear(8 * WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, DIM))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return normalize(self.projector(self.backbone(x)), dim=1)


class Moco(Encoder):
    def __init__(self):
        super().__init__()
        self.teacher = frozen(Encoder())
        self.register_buffer("queue", torch.zeros(QUEUE, DIM))
        self.register_buffer("queue_ptr", torch.zeros((), dtype=torch.int64))

    def loss(self, views: list, step: int) -> torch.Tensor:
        q = self(views[0])
        with torch.no_grad():
            self.keys = self.teacher(views[1])
        total = 0.0
        for i, k in enumerate(self.keys):
            similarities = torch.cat([(q[i] * k).sum().view(1), self.queue @ q[i]]) / TEMPERATURE
            total = total - torch.log(similarities.exp()[0] / similarities.exp().sum())
        return total / len(q)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        follow(self.teacher, self, MOMENTUM)
        for k in self.keys:
            self.queue[self.queue_ptr] = k
            self.queue_ptr.copy_((self.queue_ptr + 1) % QUEUE)


if __name__ == "__main__":
    main(
        "moco_v2",
        Moco,
        noisy_views(1, [16, 16]),
        method={
            "name": "moco-v2",
            "projector_layers": 2,
            "projector_hidden": HIDDEN,
            "projector_dim": DIM,
            "temperature": TEMPERATURE,
            "queue_size": QUEUE,
            "momentum": MOMENTUM,
            "symmetric": False,
            "batch_norm_groups": 1,
        },
        runs={"sgd": SGD, "adamw": ADAMW, "lars": LARS},
        chosen=[
            "backbone.conv1.weight",
            "backbone.layer2.0.bn1.weight",
            "projector.0.weight",
            "teacher.projector.2.weight",
            "teacher.backbone.bn1.running_mean",
            "queue",
            "queue_ptr",
        ],
        notes="Three steps of MoCo v2 on one batch.",
    )
