"""Three training steps of SeLa in float64, from section 3 of https://arxiv.org/abs/1911.05371.

    python tests/reference/sela.py [--float32]

Made with torch 2.9.1, torchvision 0.24.1, numpy and safetensors. Before the first step the first of two heads gets labels by
Sinkhorn-Knopp over all images, before the third step the second; the times are those of the authors' main.py, the
squares of equal distances over the run and 1.01 epochs more. Cross-entropy is a loop over images and heads.
"""

import math

import numpy as np
import torch
from steps import ADAMW, SGD, WIDTH, main, noisy_views, resnet18
from torch import nn

HEADS, LABELS, IMAGES = 2, 3, 6
LAMBDA, TOLERANCE = 10.0, 1e-3
STEPS, STEPS_PER_EPOCH, LABEL_STEPS = 3, 1, 3


class Sela(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = resnet18()
        self.heads = nn.Linear(8 * WIDTH, HEADS * LABELS)
        self.register_buffer("labels", torch.zeros(HEADS, IMAGES, dtype=torch.int64))
        self.times = [(STEPS + 1.01 * STEPS_PER_EPOCH) * (i / (LABEL_STEPS - 1)) ** 2 for i in range(LABEL_STEPS)]
        self.label_steps = 0

    def loss(self, views: list, step: int) -> torch.Tensor:
        while step >= self.times[self.label_steps]:
            self.find_labels(views[0], self.label_steps % HEADS)
            self.label_steps += 1
        logits = self.heads(self.backbone(views[0]))
        total = 0.0
        for image in range(IMAGES):
            for head in range(HEADS):
                x = logits[image, head * LABELS : (head + 1) * LABELS]
                total = total + torch.logsumexp(x, 0) - x[self.labels[head, image]]
        return total / (IMAGES * HEADS)

    @torch.no_grad()
    def find_labels(self, images: torch.Tensor, head: int) -> None:
        logits = self.heads(self.backbone(images))[:, head * LABELS : (head + 1) * LABELS]
        p = torch.softmax(logits, 1).double().numpy()
        self.labels[head] = torch.from_numpy(equal_shares(p).argmax(1))


def equal_shares(p: np.ndarray) -> np.ndarray:
    """Algorithm 1 of Cuturi (2013): rows and columns of p^lambda scaled in turns, for a row a sample."""
    a = p**LAMBDA
    n, k = a.shape
    beta = np.full(n, 1 / n)
    while True:
        alpha = (1 / k) / (a.T @ beta)
        new = (1 / n) / (a @ alpha)
        change = np.abs(beta / new - 1).sum()
        beta = new
        if change < TOLERANCE:
            return a * alpha * beta[:, None]


if __name__ == "__main__":
    assert [math.ceil(t) for t in Sela().times] == [0, 2, 5]
    main(
        "sela",
        Sela,
        # Seeds: see simclr.py.
        noisy_views(3, [16]),
        method={
            "name": "sela",
            "heads": HEADS,
            "labels": LABELS,
            "lambda": LAMBDA,
            "tolerance": TOLERANCE,
            "label_steps": LABEL_STEPS,
            "heads_per_label_step": 1,
        },
        runs={"sgd": SGD, "adamw": ADAMW},
        start={"labels": torch.arange(IMAGES).repeat(HEADS, 1) % LABELS},
        steps=STEPS,
        total_steps=STEPS,
        steps_per_epoch=STEPS_PER_EPOCH,
        chosen=[
            "backbone.conv1.weight",
            "backbone.layer3.0.bn2.weight",
            "heads.weight",
            "heads.bias",
            "labels",
            "backbone.bn1.running_mean",
            "backbone.bn1.num_batches_tracked",
        ],
        notes="Three steps of SeLa on one batch, with label steps before the first and the third.",
    )
