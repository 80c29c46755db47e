"""The table of architectures, and the declaration that a layer or a configuration belongs to."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from torch import nn

from bertgeom.errors import ModelError, UsageError
from bertgeom.model.architectures import adapters
from bertgeom.model.architectures.declaration import Architecture, Station, submodule


def _block_sparse_limit(config: Any) -> int | None:
    """Tokens up to which BigBird computes full attention in place of the block-sparse one."""
    if getattr(config, "attention_type", "") != "block_sparse":
        return None
    return int((5 + 2 * config.num_random_blocks) * config.block_size)


#: Of this package. Where two are alike, a layer of an unknown class is taken for the first.
ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture(
        "BERT",
        model_types=("bert",),
        layers=("BertLayer",),
        norm="attention.output.LayerNorm",
        pre_norm=False,
        like=("attention.self", "attention.output.dense"),
    ),
    Architecture(
        "RoBERTa and relatives",
        model_types=("roberta", "xlm-roberta", "camembert", "data2vec-text"),
        layers=("RobertaLayer", "XLMRobertaLayer", "CamembertLayer", "Data2VecTextLayer"),
        norm="attention.output.LayerNorm",
        pre_norm=False,
    ),
    Architecture(
        "ELECTRA, ERNIE, Splinter, RoCBert",
        model_types=("electra", "ernie", "splinter", "roc_bert"),
        layers=("ElectraLayer", "ErnieLayer", "SplinterLayer", "RoCBertLayer"),
        norm="attention.output.LayerNorm",
        pre_norm=False,
    ),
    Architecture(
        "ALBERT",
        model_types=("albert",),
        layers=("AlbertLayer",),
        norm="attention.LayerNorm",
        pre_norm=False,
        like=("attention.query", "attention.key", "attention.value", "attention.dense"),
        inner="inner_group_num",
        note="each inner layer of a group is a layer of its own",
    ),
    Architecture(
        "DistilBERT",
        model_types=("distilbert",),
        layers=("TransformerBlock",),
        norm="sa_layer_norm",
        pre_norm=False,
        like=("attention",),
    ),
    Architecture(
        "ESM",
        model_types=("esm",),
        layers=("EsmLayer",),
        norm="LayerNorm",
        pre_norm=True,
        final_norm="emb_layer_norm_after",
        like=("attention.LayerNorm", "attention.self", "attention.output.dense"),
    ),
    Architecture(
        "XLM-RoBERTa-XL",
        model_types=("xlm-roberta-xl",),
        layers=("XLMRobertaXLLayer",),
        norm="LayerNorm",
        pre_norm=True,
        final_norm="LayerNorm",
    ),
    Architecture(
        "RoBERTa-PreLayerNorm",
        model_types=("roberta-prelayernorm",),
        layers=("RobertaPreLayerNormLayer",),
        norm="intermediate.LayerNorm",
        pre_norm=True,
        final_norm="LayerNorm",
        like=("attention.LayerNorm", "attention.self", "attention.output.dense"),
    ),
    Architecture(
        "ModernBERT",
        model_types=("modernbert",),
        layers=("ModernBertEncoderLayer",),
        norm="mlp_norm",
        pre_norm=True,
        final_norm="final_norm",
        like=("attn",),
    ),
    Architecture(
        "ESM C",
        model_types=("esmc",),
        layers=("EsmcLayer",),
        norm="post_attention_layernorm",
        pre_norm=True,
        final_norm="norm",
        note="queries and keys are normalised before the logits",
    ),
    Architecture(
        "EuroBERT, UltraBERT",
        model_types=("eurobert", "ultrabert"),
        layers=("EuroBertDecoderLayer", "UltrabertDecoderLayer"),
        norm="post_attention_layernorm",
        pre_norm=True,
        final_norm="norm",
    ),
    Architecture(
        "NomicBERT, GTE, Jina v3",
        model_types=("nomic_bert", "gte", "jina_embeddings_v3"),
        layers=("NomicBertLayer", "GteLayer", "JinaEmbeddingsV3Layer"),
        norm="post_attention_layernorm",
        pre_norm=False,
    ),
    Architecture(
        "RemBERT",
        model_types=("rembert",),
        layers=("RemBertLayer",),
        norm="attention.output.LayerNorm",
        pre_norm=False,
        adapters=adapters.REMBERT,
    ),
    Architecture(
        "MegatronBERT",
        model_types=("megatron-bert",),
        layers=("MegatronBertLayer",),
        norm="ln",
        pre_norm=True,
        final_norm="ln",
        adapters=adapters.MEGATRON,
    ),
    Architecture(
        "RoFormer",
        model_types=("roformer",),
        layers=("RoFormerLayer",),
        norm="attention.output.LayerNorm",
        pre_norm=False,
        adapters=adapters.ROFORMER,
    ),
    Architecture(
        "BigBird",
        model_types=("big_bird",),
        layers=("BigBirdLayer",),
        norm="attention.output.LayerNorm",
        pre_norm=False,
        adapters=adapters.BIGBIRD,
        full_up_to=_block_sparse_limit,
        note="full attention only: with block_sparse in config.json, windows that are too short "
        "for it",
    ),
    Architecture(
        "ConvBERT",
        model_types=("convbert",),
        layers=("ConvBertLayer",),
        norm="attention.output.LayerNorm",
        pre_norm=False,
        adapters=adapters.CONVBERT,
        padding=False,
        note="its attention heads; its convolution reads padding, so windows of one length only, "
        "and not in a run",
    ),
    Architecture(
        "MosaicBERT (DNABERT-2, DNABERT-S, BiRNA-BERT)",
        model_types=("mosaicbert",),
        layers=("MosaicBertLayer",),
        norm="attention.output.LayerNorm",
        pre_norm=False,
        note="attention with ALiBi: on a CPU only",
    ),
    Architecture(
        "GENA-LM",
        model_types=("gena-lm",),
        layers=("GenaLayer",),
        norm="post_attention_ln",
        pre_norm=True,
        final_norm="last_layer_ln",
        note="BERT with norms before the blocks; not the sparse variants",
    ),
    Architecture(
        "Nucleotide Transformer v2",
        model_types=("nucleotide-transformer-v2",),
        layers=("NucleotideLayer",),
        norm="LayerNorm",
        pre_norm=True,
        final_norm="emb_layer_norm_after",
    ),
    *(
        Architecture(
            name,
            model_types=(name.lower(),),
            layers=(f"{name}Block",),
            norm="layer.1.layer_norm",
            pre_norm=True,
            final_norm="final_layer_norm",
            loads=f"{name}EncoderModel",
            adapters=adapter,
            note="the encoder alone; logits have no scale, and a bias of relative positions: on a "
            "CPU only",
        )
        for name, adapter in (("T5", adapters.T5), ("MT5", adapters.MT5), ("UMT5", adapters.UMT5))
    ),
    Architecture(
        "MPNet",
        model_types=("mpnet",),
        layers=("MPNetLayer",),
        norm="attention.LayerNorm",
        pre_norm=False,
        adapters=adapters.MPNET,
        note="logits have a bias of relative positions: on a CPU only",
    ),
)
#: Model types that stay out, and why: their mixing of tokens is not softmax(S) V of one S = Q K^T.
UNSUPPORTED: dict[str, str] = {
    **dict.fromkeys(
        ("deberta", "deberta-v2"),
        "its logits add products of queries and keys with embeddings of relative positions, which "
        "differ between windows and are no part of Q K^T",
    ),
    "fnet": "it mixes tokens by Fourier transforms, without attention",
    "longformer": "its attention is sparse, with global tokens of their own projections",
    "nystromformer": "its attention is an approximation by landmarks",
    "yoso": "its attention is an estimate by hashing, without softmax",
    "mra": "its attention is an approximation in blocks of several resolutions",
    "reformer": "its attention is among hashed tokens only",
    "ibert": "it computes in integers, softmax included",
    "squeezebert": "its layers keep tokens along the last axis, and convolve in groups",
    "mobilebert": "its attention works in a bottleneck narrower than the residual stream",
    "funnel": "it pools tokens between its layers",
    "xlnet": "its two streams attend by permutations of the tokens",
    "perceiver": "its latent vectors attend to tokens, not tokens to each other",
    "canine": "it pools characters between its layers",
    "hyenadna": "it mixes tokens by long convolutions, without attention",
    "caduceus": "it mixes tokens by state spaces, without attention",
    "mamba": "it mixes tokens by state spaces, without attention",
    "evo": "it mixes tokens by convolutions and causal attention",
    "enformer": "it pools tokens, and its attention has relative terms of its own",
    "borzoi": "it pools tokens, and its attention has relative terms of its own",
    "rnamsm": "its attention is over rows and columns of alignments",
}
_registered: list[Architecture] = []
#: Declaration of a class of layers; None for a class that no declaration names.
_by_class: dict[type, Architecture | None] = {}


def register_architecture(architecture: Architecture) -> None:
    """Declare an architecture for this process; it goes before those of the package.

    The first run of a model checks the declaration on a dummy batch. Worker processes of a
    cluster need it too: put the call where they import it.

    Args:
        architecture: where layers and stream are; one of the same name replaces the older one.

    Raises:
        UsageError: for anything else.

    Example:
        >>> import bertgeom
        >>> from bertgeom.model.architectures import Architecture
        >>> bertgeom.register_architecture(
        ...     Architecture("Mine", layers=("MyLayer",), norm="norm2", pre_norm=True)
        ... )
    """
    if not isinstance(architecture, Architecture):
        raise UsageError(
            "expected a bertgeom.model.architectures.Architecture, found "
            f"{type(architecture).__name__}"
        )
    _registered[:] = [
        architecture,
        *(other for other in _registered if other.name != architecture.name),
    ]
    _forget()


def _forget() -> None:
    """Ask the declarations again, which have changed."""
    _by_class.clear()
    _alike.cache_clear()


def refuse_by_name(config: Any) -> None:
    """Reject a configuration whose attention is of another kind, before anything is loaded.

    Raises:
        ModelError: for a model type in `UNSUPPORTED`, unless it has been registered.
    """
    kind = str(getattr(config, "model_type", ""))
    if kind in UNSUPPORTED and architecture_of_config(config) is None:
        raise ModelError(
            f"expected an encoder in which every token attends to every other by softmax(Q K^T), "
            f"found {kind!r}: {UNSUPPORTED[kind]}; it cannot be observed"
        )


def architectures() -> tuple[Architecture, ...]:
    """Registered declarations, the newest first, then those of the package."""
    return (*_registered, *ARCHITECTURES)


def architecture_of(module: nn.Module) -> Architecture | None:
    """The declaration of an encoder layer; None if the module is none that is known."""
    kind = type(module)
    if kind not in _by_class:
        names = {base.__name__ for base in kind.__mro__}
        _by_class[kind] = next((a for a in architectures() if names & set(a.layers)), None)
    named = _by_class[kind]
    if named is not None and submodule(module, named.norm) is not None:
        return named
    # Every module of a model is asked, in every forward pass; nearly all end here.
    if _alike().isdisjoint(module._modules):
        return None
    return next((a for a in architectures() if a.resembles(module)), None)


@lru_cache(maxsize=1)
def _alike() -> frozenset[str]:
    """Names of submodules of which a layer that resembles an architecture has at least one."""
    return frozenset(name for a in architectures() for name in a.like_children)


def station_of(module: nn.Module) -> Station | None:
    """Where the stream after the attention is read in a layer; None for any other module."""
    architecture = architecture_of(module)
    return None if architecture is None else architecture.find(module)


def architecture_of_config(config: Any) -> Architecture | None:
    """The declaration for the `model_type` of a configuration, None for an unknown one."""
    kind = getattr(config, "model_type", None)
    return next((a for a in architectures() if kind in a.model_types), None)
