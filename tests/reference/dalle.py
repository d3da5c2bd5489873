"""The encoder of the discrete autoencoder of DALL-E, small, and the codes that it gives two images.

    python tests/reference/dalle.py

Made with torch 2.9.1, numpy and safetensors, from https://arxiv.org/abs/2102.12092, section 2.1, and the names, sizes and
gains of openai/DALL-E: four groups of blocks with a pool after each of the first three, and a bottleneck of a quarter of the
width in every block, whose output is divided by the square of the number of blocks. Pixels are moved to [0.1, 0.9]. The
weights are those of the rule of `steps.py`; all is computed in float64.
"""

import torch
from safetensors.torch import save_file
from steps import FOLDER, noisy_views, pattern
from torch.nn.functional import conv2d, max_pool2d

WIDTH, BLOCKS, CODES, SIZE = 8, 2, 64, 32
GROUPS = 4


def shapes() -> dict:
    found = {"blocks.input": (WIDTH, 3, 7)}
    inputs = WIDTH
    for group in range(GROUPS):
        outputs = WIDTH << group
        for block in range(BLOCKS):
            place = f"blocks.group_{group + 1}.block_{block + 1}"
            if inputs != outputs:
                found[f"{place}.id_path"] = (outputs, inputs, 1)
            sizes = [(outputs // 4, inputs, 3), (outputs // 4,) * 2 + (3,), (outputs // 4,) * 2 + (3,), (outputs, outputs // 4, 1)]
            found |= {f"{place}.res_path.conv_{i + 1}": size for i, size in enumerate(sizes)}
            inputs = outputs
    return found | {"blocks.output.conv": (CODES, inputs, 1)}


def weights() -> dict:
    tensors = {}
    for name, (outputs, inputs, kernel) in shapes().items():
        tensors[f"{name}.w"] = torch.from_numpy(pattern(f"{name}.w", torch.Size([outputs, inputs, kernel, kernel])))
        tensors[f"{name}.b"] = torch.from_numpy(pattern(f"{name}.bias", torch.Size([outputs])))
    return tensors


def logits(tensors: dict, pixels: torch.Tensor) -> torch.Tensor:
    def conv(name: str, x: torch.Tensor) -> torch.Tensor:
        w, b = tensors[f"{name}.w"].double(), tensors[f"{name}.b"].double()
        return conv2d(x, w, b, padding=w.shape[-1] // 2)

    x = conv("blocks.input", 0.8 * pixels + 0.1)
    for group in range(1, GROUPS + 1):
        for block in range(1, BLOCKS + 1):
            place = f"blocks.group_{group}.block_{block}"
            same = conv(f"{place}.id_path", x) if f"{place}.id_path.w" in tensors else x
            for i in range(1, 5):
                x = conv(f"{place}.res_path.conv_{i}", x.relu())
            x = same + x / (GROUPS * BLOCKS) ** 2
        if group < GROUPS:
            x = max_pool2d(x, 2)
    return conv("blocks.output.conv", x.relu())


if __name__ == "__main__":
    # Squares of 8 pixels in colours of their own, with noise.
    colours, noise = noisy_views(41, [SIZE // 8, SIZE], images=2)
    colours = colours.repeat_interleave(8, 2).repeat_interleave(8, 3)
    images = (0.4 * colours + 0.05 * noise + 0.5).clamp(0, 1)
    tensors = weights()
    found = logits(tensors, images.double())
    best = found.topk(2, dim=1).values
    print("the best code is ahead by at least", (best[:, 0] - best[:, 1]).min().item())
    print("codes", found.argmax(1).unique().numel(), "of", CODES)
    outputs = {"in.images": images, "out.logits": found.float(), "out.codes": found.argmax(1).flatten(1)}
    folder = FOLDER.parent / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "dalle_weights.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in outputs.items()}, folder / "dalle.safetensors")
