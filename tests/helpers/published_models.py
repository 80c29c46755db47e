"""Small checkpoints in the layouts of published models, and their forward passes in float64.

The forward passes are written with NumPy from the definitions, and share nothing with the package.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

Array = NDArray[np.float64]
Weights = dict[str, Array]

WIDTH, INNER, LAYERS, VOCABULARY, LONGEST = 48, 80, 2, 40, 64

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "intermediate_size": INNER,
    "max_position_embeddings": LONGEST,
    "layer_norm_eps": 1e-12,
}
_BERT = {"type_vocab_size": 2, "hidden_act": "gelu", "hidden_dropout_prob": 0.1}

#: config.json by name, as the published ones are.
CONFIGS: dict[str, dict[str, Any]] = {
    "mosaic-4": {
        **_SIZES,
        **_BERT,
        "num_attention_heads": 4,
        "attention_probs_dropout_prob": 0.0,
        "architectures": ["BertForMaskedLM"],
        "model_type": "bert",
        "alibi_starting_size": 32,
        "position_embedding_type": "absolute",
        "pad_token_id": 0,
        "auto_map": {
            "AutoConfig": "configuration_bert.BertConfig",
            "AutoModel": "someone/model--bert_layers.BertModel",
        },
    },
    "gena": {
        **_SIZES,
        **_BERT,
        "num_attention_heads": 4,
        "architectures": ["BertForMaskedLM"],
        "model_type": "bert",
        "pre_layer_norm": True,
        "position_embedding_type": "absolute",
        "pad_token_id": 3,
        "auto_map": {"AutoModel": "modeling_bert.BertModel"},
    },
    "nucleotide": {
        **_SIZES,
        "num_attention_heads": 4,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "architectures": ["EsmForMaskedLM"],
        "add_bias_fnn": False,
        "position_embedding_type": "rotary",
        "emb_layer_norm_before": False,
        "token_dropout": False,
        "pad_token_id": 1,
        "mask_token_id": 2,
        "tie_word_embeddings": False,
        "auto_map": {
            "AutoConfig": "esm_config.EsmConfig",
            "AutoModelForMaskedLM": "modeling_esm.EsmForMaskedLM",
        },
    },
}
# No power of two; and the parts of the other that an ESM may have.
CONFIGS["mosaic-6"] = {**CONFIGS["mosaic-4"], "num_attention_heads": 6}
CONFIGS["nucleotide-dropout"] = {
    **CONFIGS["nucleotide"],
    "token_dropout": True,
    "emb_layer_norm_before": True,
    "add_bias_fnn": True,
}


@dataclass(frozen=True)
class Expected:
    """Hidden states (stage, token, width) and maps (layer, head, query, key) of one window."""

    states: Array
    maps: Array


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of every weight by its published name."""
    if "add_bias_fnn" in config:
        return _nucleotide_shapes(config)
    found: dict[str, tuple[int, ...]] = {
        "bert.embeddings.word_embeddings.weight": (VOCABULARY, WIDTH),
        "bert.embeddings.token_type_embeddings.weight": (2, WIDTH),
        **_norm("bert.embeddings.LayerNorm"),
        **_linear("cls.predictions.transform.dense", WIDTH, WIDTH),
    }
    mosaic = "alibi_starting_size" in config
    if not mosaic:
        found["bert.embeddings.position_embeddings.weight"] = (LONGEST, WIDTH)
        found |= _norm("bert.encoder.last_layer_ln")
    for i in range(LAYERS):
        layer = f"bert.encoder.layer.{i}"
        found |= _linear(f"{layer}.attention.output.dense", WIDTH, WIDTH)
        if mosaic:
            found |= _linear(f"{layer}.attention.self.Wqkv", WIDTH, 3 * WIDTH)
            found |= _norm(f"{layer}.attention.output.LayerNorm")
            found[f"{layer}.mlp.gated_layers.weight"] = (2 * INNER, WIDTH)
            found |= _linear(f"{layer}.mlp.wo", INNER, WIDTH) | _norm(f"{layer}.mlp.layernorm")
            continue
        for name in ("query", "key", "value"):
            found |= _linear(f"{layer}.attention.self.{name}", WIDTH, WIDTH)
        found |= _norm(f"{layer}.pre_attention_ln") | _norm(f"{layer}.post_attention_ln")
        found |= _linear(f"{layer}.intermediate.dense", WIDTH, INNER)
        found |= _linear(f"{layer}.output.dense", INNER, WIDTH)
    return found


def _nucleotide_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {
        "esm.embeddings.word_embeddings.weight": (VOCABULARY, WIDTH),
        # In the published files, and used by nobody.
        "esm.embeddings.position_embeddings.weight": (LONGEST, WIDTH),
        **_linear("esm.contact_head.regression", LAYERS * 4, 1),
        **_norm("esm.encoder.emb_layer_norm_after"),
    }
    if config["emb_layer_norm_before"]:
        found |= _norm("esm.embeddings.layer_norm")
    bias = config["add_bias_fnn"]
    for i in range(LAYERS):
        layer = f"esm.encoder.layer.{i}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            found |= _linear(f"{layer}.attention.{name}", WIDTH, WIDTH)
        found |= _norm(f"{layer}.attention.LayerNorm") | _norm(f"{layer}.LayerNorm")
        found |= _linear(f"{layer}.intermediate.dense", WIDTH, 2 * INNER, bias=bias)
        found |= _linear(f"{layer}.output.dense", INNER, WIDTH, bias=bias)
    return found


def _linear(name: str, n_in: int, n_out: int, *, bias: bool = True) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {f"{name}.weight": (n_out, n_in)}
    return found | ({f"{name}.bias": (n_out,)} if bias else {})


def _norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}


def random_weights(config: dict[str, Any], seed: int = 0) -> Weights:
    """Weights by published name, large enough that attention is not uniform."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, shape in shapes(config).items():
        if "orm." in name or "_ln." in name or name.endswith("layernorm.weight"):
            value = rng.normal(1.0 if name.endswith("weight") else 0.0, 0.2, shape)
        else:
            value = rng.normal(0.0, 2.0 / np.sqrt(shape[-1]) if len(shape) > 1 else 0.2, shape)
        found[name] = value.astype(np.float32).astype(np.float64)
    return found


def write(folder: Path, config: dict[str, Any], weights: Weights) -> Path:
    """A folder with config.json and model.safetensors."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    single = {name: value.astype(np.float32) for name, value in weights.items()}
    save_file(single, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def forward(config: dict[str, Any], weights: Weights, ids: NDArray[np.int64]) -> Expected:
    """Stages and maps of one window (n,) without padding."""
    if "alibi_starting_size" in config:
        return _mosaic(config, weights, ids)
    return (_nucleotide if "add_bias_fnn" in config else _gena)(config, weights, ids)


def _affine(w: Weights, name: str, x: Array) -> Array:
    y: Array = x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", np.zeros(1))
    return y


def _layer_norm(w: Weights, name: str, x: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-12)
    y: Array = scaled * w[f"{name}.weight"] + w[f"{name}.bias"]
    return y


def _gelu(x: Array) -> Array:
    y: Array = x * 0.5 * (1.0 + erf(x / np.sqrt(2.0)))
    return y


def _silu(x: Array) -> Array:
    y: Array = x / (1.0 + np.exp(-x))
    return y


def _gated(x: Array, activation: Callable[[Array], Array]) -> Array:
    return activation(x[:, :INNER]) * x[:, INNER:]


def _heads(x: Array, heads: int) -> Array:
    return x.reshape(len(x), heads, -1).transpose(1, 0, 2)


def _attend(q: Array, k: Array, v: Array, bias: Array | float = 0.0) -> tuple[Array, Array]:
    """(H, n, d) three times: heads side by side (n, H d), and maps (H, n, n)."""
    logits = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1]) + bias
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return (weights @ v).transpose(1, 0, 2).reshape(q.shape[1], -1), weights


def _slopes(heads: int) -> Array:
    """ALiBi's, from the words of the paper: a geometric sequence; between two powers, both."""
    power = 2 ** int(np.floor(np.log2(heads)))
    start = 2.0 ** (-8.0 / power)
    own = [start ** (i + 1) for i in range(power)]
    double = 2.0 ** (-4.0 / power)
    more = [double ** (i + 1) for i in range(2 * power)][::2]
    return np.array([*own, *more[: heads - power]])


def _mosaic(config: dict[str, Any], w: Weights, ids: NDArray[np.int64]) -> Expected:
    heads = config["num_attention_heads"]
    x = w["bert.embeddings.word_embeddings.weight"][ids]
    x = _layer_norm(
        w, "bert.embeddings.LayerNorm", x + w["bert.embeddings.token_type_embeddings.weight"][0]
    )
    states, maps = [x], []
    distance = np.abs(np.subtract.outer(np.arange(len(ids)), np.arange(len(ids))))
    for i in range(LAYERS):
        layer = f"bert.encoder.layer.{i}"
        qkv = _affine(w, f"{layer}.attention.self.Wqkv", x)
        q, k, v = (_heads(part, heads) for part in np.split(qkv, 3, axis=-1))
        z, a = _attend(q, k, v, -_slopes(heads)[:, None, None] * distance)
        z = _affine(w, f"{layer}.attention.output.dense", z)
        x = _layer_norm(w, f"{layer}.attention.output.LayerNorm", z + x)
        inner = _gated(_affine(w, f"{layer}.mlp.gated_layers", x), _gelu)
        x = _layer_norm(w, f"{layer}.mlp.layernorm", _affine(w, f"{layer}.mlp.wo", inner) + x)
        states.append(x)
        maps.append(a)
    return Expected(np.stack(states), np.stack(maps))


def _projected(w: Weights, name: str, x: Array, heads: int) -> tuple[Array, Array, Array]:
    q, k, v = (_heads(_affine(w, f"{name}.{p}", x), heads) for p in ("query", "key", "value"))
    return q, k, v


def _gena(config: dict[str, Any], w: Weights, ids: NDArray[np.int64]) -> Expected:
    heads = config["num_attention_heads"]
    x = w["bert.embeddings.word_embeddings.weight"][ids]
    x = x + w["bert.embeddings.position_embeddings.weight"][: len(ids)]
    x = _layer_norm(
        w, "bert.embeddings.LayerNorm", x + w["bert.embeddings.token_type_embeddings.weight"][0]
    )
    states, maps = [x], []
    for i in range(LAYERS):
        layer = f"bert.encoder.layer.{i}"
        normed = _layer_norm(w, f"{layer}.pre_attention_ln", x)
        z, a = _attend(*_projected(w, f"{layer}.attention.self", normed, heads))
        x = x + _affine(w, f"{layer}.attention.output.dense", z)
        inner = _affine(
            w, f"{layer}.intermediate.dense", _layer_norm(w, f"{layer}.post_attention_ln", x)
        )
        x = x + _affine(w, f"{layer}.output.dense", _gelu(inner))
        states.append(x)
        maps.append(a)
    states[-1] = _layer_norm(w, "bert.encoder.last_layer_ln", x)
    return Expected(np.stack(states), np.stack(maps))


def _turned(x: Array) -> Array:
    """Rotary positions: pairs (i, i + d/2) as complex numbers, turned by their angles."""
    d = x.shape[-1]
    number = x[..., : d // 2] + 1j * x[..., d // 2 :]
    angle = np.outer(np.arange(x.shape[1]), 10_000.0 ** (-2.0 * np.arange(d // 2) / d))
    number = number * np.exp(1j * angle)
    return np.concatenate([number.real, number.imag], axis=-1)


def _nucleotide(config: dict[str, Any], w: Weights, ids: NDArray[np.int64]) -> Expected:
    heads = config["num_attention_heads"]
    x = w["esm.embeddings.word_embeddings.weight"][ids]
    if config["token_dropout"]:
        masked = ids == config["mask_token_id"]
        x = np.where(masked[:, None], 0.0, x) * (1 - 0.12) / (1 - masked.mean())
    if config["emb_layer_norm_before"]:
        x = _layer_norm(w, "esm.embeddings.layer_norm", x)
    states, maps = [x], []
    for i in range(LAYERS):
        layer = f"esm.encoder.layer.{i}"
        normed = _layer_norm(w, f"{layer}.attention.LayerNorm", x)
        q, k, v = _projected(w, f"{layer}.attention.self", normed, heads)
        z, a = _attend(_turned(q), _turned(k), v)
        x = x + _affine(w, f"{layer}.attention.output.dense", z)
        inner = _affine(w, f"{layer}.intermediate.dense", _layer_norm(w, f"{layer}.LayerNorm", x))
        x = x + _affine(w, f"{layer}.output.dense", _gated(inner, _silu))
        states.append(x)
        maps.append(a)
    states[-1] = _layer_norm(w, "esm.encoder.emb_layer_norm_after", x)
    return Expected(np.stack(states), np.stack(maps))
