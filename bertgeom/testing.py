"""Small random models for tests, and their statistics computed from eager attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

#: Architectures that `bertgeom` supports, as very small models.
TINY_MODELS = ("bert", "roberta", "electra", "albert", "distilbert", "esm", "modernbert")


def tiny_model(
    kind: str = "bert",
    *,
    n_layers: int = 2,
    n_heads: int = 2,
    hidden: int = 32,
    vocabulary: int = 60,
    max_tokens: int = 128,
    seed: int = 0,
    spread: float = 0.3,
) -> Any:
    """A random encoder in eval mode, with eager attention.

    Args:
        kind: one of `TINY_MODELS`.
        n_layers, n_heads, hidden, vocabulary: its size; hidden is a multiple of n_heads.
        max_tokens: the longest window. seed: equal seeds give equal weights.
        spread: standard deviation of the weights; large enough that attention is not uniform.

    Raises:
        ValueError: for an unknown kind.

    Example:
        >>> from bertgeom.testing import tiny_model
        >>> tiny_model("esm", n_layers=3).config.num_hidden_layers
        3
    """
    import transformers as t

    if kind not in TINY_MODELS:
        raise ValueError(f"expected one of {', '.join(TINY_MODELS)}, found {kind!r}")
    common: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads,
        "intermediate_size": 2 * hidden,
        "max_position_embeddings": max_tokens + 2,
        "initializer_range": spread,
        "pad_token_id": 0,
    }
    config: Any
    model: Any
    if kind == "bert":
        config, model = t.BertConfig(**common), t.BertModel
    elif kind == "roberta":
        config, model = t.RobertaConfig(**common), t.RobertaModel
    elif kind == "electra":
        config, model = t.ElectraConfig(**common, embedding_size=hidden), t.ElectraModel
    elif kind == "albert":
        config, model = t.AlbertConfig(**common, embedding_size=hidden), t.AlbertModel
    elif kind == "distilbert":
        config = t.DistilBertConfig(
            vocab_size=vocabulary,
            dim=hidden,
            n_layers=n_layers,
            n_heads=n_heads,
            hidden_dim=2 * hidden,
            max_position_embeddings=max_tokens + 2,
            initializer_range=spread,
            pad_token_id=0,
        )
        model = t.DistilBertModel
    elif kind == "esm":
        config = t.EsmConfig(**common, position_embedding_type="rotary", mask_token_id=4)
        model = t.EsmModel
    else:
        special: dict[str, Any] = {
            "cls_token_id": 1,
            "sep_token_id": 2,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        layers: dict[str, Any] = {"local_attention": 16, "global_attn_every_n_layers": 2}
        config = t.ModernBertConfig(**common, **special, **layers)
        model = t.ModernBertModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config._attn_implementation = "eager"
        return model(config).eval()


def save_tiny_classifier(
    folder: Path,
    *,
    k: int = 3,
    n_classes: int = 3,
    max_tokens: int = 64,
    n_layers: int = 2,
    n_heads: int = 2,
    hidden: int = 32,
    seed: int = 0,
) -> Path:
    """Write a random DNABERT-like sequence classifier with its vocabulary into `folder`.

    The vocabulary holds the special tokens and all k-mers over A, T, C, G.

    Args:
        folder: made if absent. k: letters of a token. n_classes: labels of the classifier.
        max_tokens, n_layers, n_heads, hidden, seed: as in `tiny_model`.

    Example:
        >>> from pathlib import Path
        >>> import bertgeom
        >>> from bertgeom.testing import save_tiny_classifier
        >>> folder = save_tiny_classifier(Path("tiny"), n_classes=5)
        >>> len(bertgeom.load_encoder(folder).class_names)
        5
    """
    from itertools import product

    from transformers import BertConfig, BertForSequenceClassification

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += ["".join(letters) for letters in product("ATCG", repeat=k)]
    shape: dict[str, Any] = {"num_labels": n_classes}
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=hidden,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        intermediate_size=2 * hidden,
        max_position_embeddings=max_tokens,
        initializer_range=0.3,
        pad_token_id=0,
        **shape,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertForSequenceClassification(config).eval()
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return folder


def eager_forward(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> Any:
    """Output of the model with eager attention, hidden states and attention maps included."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            return model(
                input_ids=ids,
                attention_mask=mask,
                output_attentions=True,
                output_hidden_states=True,
            )
    finally:
        model.set_attn_implementation(before)


def eager_attention_statistics(
    maps: tuple[torch.Tensor, ...], mask: torch.Tensor, special: torch.Tensor, n_side: int
) -> dict[str, Any]:
    """Statistics (window, layer, head, ...) of eager maps, a tuple of (B, H, N, N) by layer."""
    from bertgeom.kernels.attention_stats.options import Options
    from bertgeom.kernels.attention_stats.reference import weight_statistics

    options = Options(
        scale=1.0,
        window=None,
        full=True,
        theta=0.3,
        near=4,
        n_offset_side=n_side,
        n_groups=0,
        rows=False,
        columns=False,
    )
    windows = []
    for b in range(len(mask)):
        valid = mask[b].bool()
        per_layer = []
        for layer in maps:
            a = layer[b][:, valid][:, :, valid].double()
            a = a / a.sum(-1, keepdim=True)
            per_layer.append(weight_statistics(a, special[b][valid], options))
        windows.append({k: torch.stack([s[k] for s in per_layer]) for k in per_layer[0]})
    return {k: torch.stack([w[k] for w in windows]).numpy() for k in windows[0]}
