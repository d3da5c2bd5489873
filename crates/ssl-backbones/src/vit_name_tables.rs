//! The names of a vision transformer's tensors in other programs, as tables.
//!
//! An entry goes from one of our names, which are timm's, to that of the program; where the program keeps queries, keys
//! and values, or gates and values, apart, one of our tensors is several there.

/// One of our names, or the front of some, and its forms: each a list of the parts that it consists of. The first form
/// is written, the others are read as well.
pub(crate) type Entry = (&'static str, &'static [&'static [&'static str]]);

/// The names of one program.
pub(crate) struct Scheme {
    /// What may stand before every name; the first is written.
    pub(crate) prefixes: &'static [&'static str],
    /// Outside of the blocks.
    pub(crate) outer: &'static [Entry],
    /// What stands before the number of a block; the first is written.
    pub(crate) blocks: &'static [&'static str],
    /// Within a block, in the order in which they are looked up.
    pub(crate) inner: &'static [&'static [Entry]],
    /// Beginnings of the names of what is no part of the backbone.
    pub(crate) others: &'static [&'static str],
}

pub(crate) const TIMM: Scheme = Scheme {
    prefixes: &["", "module.backbone.", "backbone.", "module."],
    outer: &[
        ("cls_token", &[&["cls_token"]]),
        ("reg_token", &[&["reg_token"]]),
        ("pos_embed", &[&["pos_embed"]]),
        ("patch_embed", &[&["patch_embed"]]),
        ("norm_pre", &[&["norm_pre"]]),
        ("rel_pos_bias", &[&["rel_pos_bias"]]),
        ("norm", &[&["norm"]]),
        ("fc_norm", &[&["fc_norm"]]),
    ],
    blocks: &["blocks"],
    inner: &[TIMM_BLOCK],
    others: &["head", "mask_token", "masked_embed", "decoder_", "lm_head"],
};

const TIMM_BLOCK: &[Entry] = &[
    ("norm1", &[&["norm1"]]),
    ("attn", &[&["attn"]]),
    ("ls1", &[&["ls1"]]),
    ("gamma_1", &[&["gamma_1"]]),
    ("norm2", &[&["norm2"]]),
    ("mlp", &[&["mlp"]]),
    ("ls2", &[&["ls2"]]),
    ("gamma_2", &[&["gamma_2"]]),
];

pub(crate) const DINOV2: Scheme = Scheme {
    prefixes: &["", "module.backbone.", "backbone.", "module."],
    outer: &[
        ("cls_token", &[&["cls_token"]]),
        ("reg_token", &[&["register_tokens"]]),
        ("pos_embed", &[&["pos_embed"]]),
        ("patch_embed", &[&["patch_embed"]]),
        ("norm", &[&["norm"]]),
    ],
    blocks: &["blocks"],
    inner: &[TIMM_BLOCK],
    others: &["head", "mask_token", "dino_head", "ibot_head"],
};

pub(crate) const DINOV2_GATED: Scheme = Scheme { inner: &[OFFICIAL_GATE, TIMM_BLOCK], ..DINOV2 };

const OFFICIAL_GATE: &[Entry] = &[("mlp.fc1", &[&["mlp.w12"]]), ("mlp.fc2", &[&["mlp.w3"]])];

pub(crate) const VIT: Scheme = Scheme {
    prefixes: &["", "vit."],
    outer: TRANSFORMERS,
    blocks: &["encoder.layer", "layers"],
    inner: &[VIT_BLOCK],
    others: &["pooler", "classifier", "decoder", "embeddings.mask_token"],
};

const TRANSFORMERS: &[Entry] = &[
    ("cls_token", &[&["embeddings.cls_token"]]),
    ("reg_token", &[&["embeddings.register_tokens"]]),
    ("pos_embed", &[&["embeddings.position_embeddings"]]),
    ("patch_embed.proj", &[&["embeddings.patch_embeddings.projection"]]),
    ("rel_pos_bias", &[&["encoder.relative_position_bias"], &["shared_position_bias"]]),
    ("norm", &[&["layernorm"]]),
    ("fc_norm", &[&["pooler.layernorm"]]),
];

const VIT_BLOCK: &[Entry] = &[
    ("norm1", &[&["layernorm_before"]]),
    (
        "attn.relative_position_bias_table",
        &[
            &["attention.attention.relative_position_bias.relative_position_bias_table"],
            &["relative_position_bias.relative_position_bias_table"],
        ],
    ),
    ("attn.qkv", QKV),
    ("attn.proj", &[&["attention.output.dense"], &["attention.o_proj"]]),
    ("gamma_1", &[&["lambda_1"]]),
    ("norm2", &[&["layernorm_after"]]),
    ("mlp.fc1", &[&["intermediate.dense"], &["mlp.fc1"]]),
    ("mlp.fc2", &[&["output.dense"], &["mlp.fc2"]]),
    ("gamma_2", &[&["lambda_2"]]),
];

const QKV: &[&[&str]] = &[
    &["attention.attention.query", "attention.attention.key", "attention.attention.value"],
    &["attention.q_proj", "attention.k_proj", "attention.v_proj"],
];

pub(crate) const BEIT: Scheme = Scheme {
    prefixes: &["", "beit."],
    inner: &[OUTER_BIASES, VIT_BLOCK],
    others: &["pooler", "classifier", "lm_head", "embeddings.mask_token"],
    ..VIT
};

const OUTER_BIASES: &[Entry] = &[
    ("attn.q_bias", &[&["attention.attention.query.bias"], &["attention.q_proj.bias"]]),
    ("attn.v_bias", &[&["attention.attention.value.bias"], &["attention.v_proj.bias"]]),
];

pub(crate) const DATA2VEC: Scheme = Scheme { prefixes: &["", "data2vec_vision."], ..BEIT };

pub(crate) const TRANSFORMERS_DINOV2: Scheme = Scheme {
    prefixes: &["", "dinov2_with_registers.", "dinov2."],
    inner: &[DINOV2_BLOCK],
    others: &["classifier", "embeddings.mask_token"],
    ..VIT
};

pub(crate) const TRANSFORMERS_DINOV2_GATED: Scheme =
    Scheme { inner: &[GATE, DINOV2_BLOCK], ..TRANSFORMERS_DINOV2 };

const GATE: &[Entry] = &[
    ("mlp.fc1", &[&["mlp.weights_in"], &["mlp.gate_proj", "mlp.up_proj"]]),
    ("mlp.fc2", &[&["mlp.weights_out"], &["mlp.down_proj"]]),
];

const DINOV2_BLOCK: &[Entry] = &[
    ("norm1", &[&["norm1"]]),
    ("attn.qkv", QKV),
    ("attn.proj", &[&["attention.output.dense"], &["attention.o_proj"]]),
    ("ls1.gamma", &[&["layer_scale1.lambda1"]]),
    ("norm2", &[&["norm2"]]),
    ("mlp.fc1", &[&["mlp.fc1"]]),
    ("mlp.fc2", &[&["mlp.fc2"]]),
    ("ls2.gamma", &[&["layer_scale2.lambda1"]]),
];

pub(crate) const CLIP: Scheme = Scheme {
    prefixes: &["vision_model.", ""],
    outer: &[
        ("cls_token", &[&["embeddings.class_embedding"]]),
        ("pos_embed", &[&["embeddings.position_embedding.weight"]]),
        ("patch_embed.proj", &[&["embeddings.patch_embedding"]]),
        ("norm_pre", &[&["pre_layrnorm"]]),
        ("norm", &[&["post_layernorm"]]),
    ],
    blocks: &["encoder.layers"],
    inner: &[&[
        ("norm1", &[&["layer_norm1"]]),
        ("attn.qkv", &[&["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]]),
        ("attn.proj", &[&["self_attn.out_proj"]]),
        ("norm2", &[&["layer_norm2"]]),
        ("mlp.fc1", &[&["mlp.fc1"]]),
        ("mlp.fc2", &[&["mlp.fc2"]]),
    ]],
    others: &["text_model", "visual_projection", "text_projection", "logit_scale", "embeddings.position_ids"],
};
