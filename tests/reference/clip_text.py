"""The text tower of CLIP by the library transformers: values and gradients in float64.

    python tests/reference/clip_text.py

Made with torch 2.9.1 and transformers 5.23.0: CLIPTextModelWithProjection with random weights, stored under OpenAI's names.
Texts have 1 to 9 tokens between start and end and are padded with the end token, as transformers does.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

FILE = Path(__file__).resolve().parent.parent / "golden" / "text" / "clip_text_tower.safetensors"
VOCABULARY, CONTEXT, WIDTH, LAYERS, HEADS, EMBED_DIM = 40, 12, 16, 2, 4, 10
# From OpenAI's names to those of transformers; queries, keys and values are three tensors there.
OUTSIDE = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
INSIDE = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def openai(tensors: dict) -> dict:
    """Tensors by the names of transformers, under OpenAI's."""
    renamed = {ours: tensors[theirs] for ours, theirs in OUTSIDE.items()}
    renamed["text_projection"] = tensors["text_projection.weight"].T
    for i in range(LAYERS):
        ours, theirs = f"transformer.resblocks.{i}.", f"text_model.encoder.layers.{i}."
        for kind in ("weight", "bias"):
            parts = [tensors[f"{theirs}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            renamed[f"{ours}attn.in_proj_{kind}"] = torch.cat(parts)
            renamed |= {f"{ours}{a}.{kind}": tensors[f"{theirs}{b}.{kind}"] for a, b in INSIDE.items()}
    return renamed


def main() -> None:
    torch.manual_seed(77)
    config = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=CONTEXT,
        projection_dim=EMBED_DIM,
        hidden_act="quick_gelu",
        bos_token_id=VOCABULARY - 2,
        eos_token_id=VOCABULARY - 1,
        pad_token_id=VOCABULARY - 1,
    )
    model = CLIPTextModelWithProjection(config).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 0 else 0.0, 0.3)
    ids = torch.full((5, CONTEXT), VOCABULARY - 1)
    for row, words in enumerate([3, 1, 9, 5, 2]):
        ids[row, 0] = VOCABULARY - 2
        ids[row, 1 : words + 1] = torch.randint(VOCABULARY - 2, (words,))
    out = model(input_ids=ids).text_embeds
    pattern = torch.randn(out.shape, dtype=out.dtype)
    (out * pattern).sum().backward()
    parameters = {name: p for name, p in model.named_parameters()}
    tensors = {"in.ids": ids, "out": out, "pattern": pattern}
    tensors |= {f"weight.{name}": t for name, t in openai({n: p.detach() for n, p in parameters.items()}).items()}
    tensors |= {f"grad.{name}": t for name, t in openai({n: p.grad for n, p in parameters.items()}).items()}
    FILE.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: t.detach().contiguous() for name, t in tensors.items()}, FILE)
    print(len(tensors), "tensors,", FILE.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
