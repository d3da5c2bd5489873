"""Three training steps of SimCLR in float64, from equation 1 of https://arxiv.org/abs/2002.05709.

    python tests/reference/simclr.py [--float32]

Made with torch 2.9.1, torchvision 0.24.1, numpy and safetensors. Both views pass in one batch in training mode; the loss
is a loop over all pairs, and its mean over all 2N anchors; the projector is Linear, BN, ReLU, Linear, BN, the linear
layers without bias, the last BN without a shift.
"""

import torch
from steps import ADAMW, LARS, SGD, WIDTH, main, noisy_views, resnet18
from torch import nn

HIDDEN, DIM = 16, 12
TEMPERATURE = 0.2


class SimClr(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = resnet18()
        self.projector = nn.Sequential(
            nn.Linear(8 * WIDTH, HIDDEN, bias=False),
            nn.BatchNorm1d(HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, DIM, bias=False),
            nn.BatchNorm1d(DIM),
        )
        # The last norm has no shift: zero, and not a parameter.
        self.projector[4].bias = None

    def loss(self, views: list, step: int) -> torch.Tensor:
        return nt_xent(self.projector(self.backbone(torch.cat(views))))


def nt_xent(z: torch.Tensor) -> torch.Tensor:
    """Equation 1, for the pairs (i, i + N): -log(exp(s_ij / T) / sum over k != i of exp(s_ik / T))."""
    n = len(z) // 2

    def similarity(i: int, k: int) -> torch.Tensor:
        return torch.dot(z[i], z[k]) / (z[i].norm() * z[k].norm())

    total = 0.0
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        denominator = sum(torch.exp(similarity(i, k) / TEMPERATURE) for k in range(2 * n) if k != i)
        total = total - torch.log(torch.exp(similarity(i, j) / TEMPERATURE) / denominator)
    return total / (2 * n)


if __name__ == "__main__":
    main(
        "simclr",
        SimClr,
        # With these images no input of a ReLU comes so close to zero that float32 could put it on the other side, where
        # one element would change gradients by a percent: see the last line with --float32.
        noisy_views(20168, [16, 16]),
        method={
            "name": "simclr",
            "temperature": TEMPERATURE,
            "projector_hidden": HIDDEN,
            "projector_dim": DIM,
            "projector_layers": 2,
        },
        runs={"sgd": SGD, "adamw": ADAMW, "lars": LARS},
        chosen=[
            "backbone.conv1.weight",
            "backbone.layer2.0.bn1.weight",
            "projector.0.weight",
            "backbone.bn1.running_mean",
            "backbone.bn1.running_var",
            "backbone.bn1.num_batches_tracked",
        ],
        notes="Three steps of SimCLR on one batch.",
    )
