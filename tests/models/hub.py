"""Tiny configurations of Hugging Face models with random weights; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

WIDTH, HEADS, DEPTH, VOCABULARY, LENGTH = 32, 4, 2, 96, 12


class Hub(nn.Module):
    """A Hugging Face model as a function from tensors to one tensor."""

    def __init__(self, model: nn.Module, inputs: tuple[str, ...], output: str) -> None:
        super().__init__()
        self.model, self.inputs, self.output = model, inputs, output

    def forward(self, *args: Tensor) -> Tensor:
        out = self.model(**dict(zip(self.inputs, args, strict=True)), return_dict=True)
        return getattr(out, self.output)


def tokens(length: int = LENGTH) -> Tensor:
    return torch.randint(3, VOCABULARY, (1, length))


def _make(name: str, config: str, output: str, inputs: dict[str, Tensor], **options: Any) -> Any:
    import transformers

    made = getattr(transformers, config)(**options)
    made._attn_implementation = "eager"
    model = getattr(transformers, name)(made)
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    return Hub(model.eval(), tuple(inputs), output), tuple(inputs.values())


def _usual(**changes: Any) -> dict[str, Any]:
    """Sizes under the names that most configurations share; dropout off."""
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
        "max_position_embeddings": 64,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return sizes | changes


def _decoder(name: str, config: str, **changes: Any) -> Any:
    """A causal language model in the manner of Llama."""
    options = _usual(num_key_value_heads=2, attention_dropout=0.0, **changes)
    for key in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        options.pop(key)
    return _make(name, config, "logits", {"input_ids": tokens()}, **options)


def _encoder(name: str, config: str, output: str = "last_hidden_state", **changes: Any) -> Any:
    return _make(name, config, output, {"input_ids": tokens()}, **_usual(**changes))


def gpt2() -> Any:
    sizes = {"n_embd": WIDTH, "n_layer": DEPTH, "n_head": HEADS, "n_positions": 64}
    dropouts = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
    ids = {"input_ids": tokens()}
    return _make(
        "GPT2LMHeadModel", "GPT2Config", "logits", ids, vocab_size=VOCABULARY, **sizes, **dropouts
    )


def gpt_neox() -> Any:
    options = _usual(hidden_dropout=0.0, attention_dropout=0.0)
    ids = {"input_ids": tokens()}
    return _make("GPTNeoXForCausalLM", "GPTNeoXConfig", "logits", ids, **options)


def opt() -> Any:
    sizes = _usual(ffn_dim=2 * WIDTH, word_embed_proj_dim=WIDTH, dropout=0.0)
    return _make("OPTForCausalLM", "OPTConfig", "logits", {"input_ids": tokens()}, **sizes)


def bloom() -> Any:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "n_layer": DEPTH, "n_head": HEADS}
    return _make("BloomForCausalLM", "BloomConfig", "logits", {"input_ids": tokens()}, **sizes)


def mpt() -> Any:
    sizes = {"vocab_size": VOCABULARY, "d_model": WIDTH, "n_layers": DEPTH, "n_heads": HEADS}
    ids = {"input_ids": tokens()}
    return _make("MptForCausalLM", "MptConfig", "logits", ids, max_seq_len=64, **sizes)


def falcon() -> Any:
    return _make("FalconForCausalLM", "FalconConfig", "logits", {"input_ids": tokens()}, **_usual())


def t5() -> Any:
    sizes = {"vocab_size": VOCABULARY, "d_model": WIDTH, "d_kv": 8, "d_ff": 2 * WIDTH}
    ids = {"input_ids": tokens(), "decoder_input_ids": tokens(8)}
    return _make(
        "T5ForConditionalGeneration",
        "T5Config",
        "logits",
        ids,
        num_layers=DEPTH,
        num_heads=HEADS,
        dropout_rate=0.0,
        **sizes,
    )


def _seq2seq(name: str, config: str, inputs: dict[str, Tensor], **changes: Any) -> Any:
    sides = ("encoder", "decoder")
    sizes = {"vocab_size": VOCABULARY, "d_model": WIDTH, "dropout": 0.0}
    sizes |= {f"{s}_layers": DEPTH for s in sides} | {f"{s}_attention_heads": HEADS for s in sides}
    sizes |= {f"{s}_ffn_dim": 2 * WIDTH for s in sides}
    return _make(name, config, "logits", inputs, **(sizes | changes))


def bart() -> Any:
    inputs = {"input_ids": tokens(), "decoder_input_ids": tokens(8)}
    return _seq2seq("BartForConditionalGeneration", "BartConfig", inputs, max_position_embeddings=64)


def whisper() -> Any:
    inputs = {"input_features": torch.randn(1, 16, 40), "decoder_input_ids": tokens(8)}
    sizes = {"num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 32}
    special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 1)
    return _seq2seq(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        inputs,
        decoder_start_token_id=1,
        **sizes,
        **special,
    )


def clip() -> Any:
    common = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": DEPTH}
    common |= {"num_attention_heads": HEADS}
    text = common | {"vocab_size": VOCABULARY, "max_position_embeddings": 32, "eos_token_id": 2}
    vision = common | {"image_size": 32, "patch_size": 8}
    inputs = {"input_ids": tokens(), "pixel_values": torch.randn(1, 3, 32, 32)}
    return _make(
        "CLIPModel",
        "CLIPConfig",
        "logits_per_image",
        inputs,
        text_config=text,
        vision_config=vision,
        projection_dim=16,
    )


def swin() -> Any:
    inputs = {"pixel_values": torch.randn(1, 3, 32, 32)}
    sizes = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 4]}
    return _make("SwinModel", "SwinConfig", "last_hidden_state", inputs, window_size=4, **sizes)


def segformer() -> Any:
    sizes = {
        "num_encoder_blocks": 2,
        "depths": [1, 1],
        "sr_ratios": [2, 1],
        "hidden_sizes": [8, 16],
        "patch_sizes": [7, 3],
        "strides": [4, 2],
        "num_attention_heads": [1, 2],
        "mlp_ratios": [2, 2],
        "decoder_hidden_size": 16,
    }
    inputs = {"pixel_values": torch.randn(1, 3, 64, 64)}
    return _make("SegformerForSemanticSegmentation", "SegformerConfig", "logits", inputs, **sizes)


def wav2vec2() -> Any:
    inputs = {"input_values": torch.randn(1, 800)}
    convolutions = {"conv_dim": [16, 16], "conv_kernel": [10, 3], "conv_stride": [5, 2]}
    sizes = _usual(num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2, layerdrop=0.0)
    return _make("Wav2Vec2ForCTC", "Wav2Vec2Config", "logits", inputs, **sizes, **convolutions)


def mamba() -> Any:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "state_size": 4, "num_hidden_layers": 1}
    return _make("MambaForCausalLM", "MambaConfig", "logits", {"input_ids": tokens(6)}, **sizes)


HUB: dict[str, Callable[[], Any]] = {
    "gpt2": gpt2,
    "gpt_neox": gpt_neox,
    "opt": opt,
    "bloom": bloom,
    "mpt": mpt,
    "falcon": falcon,
    "llama": lambda: _decoder("LlamaForCausalLM", "LlamaConfig"),
    "mistral": lambda: _decoder("MistralForCausalLM", "MistralConfig", sliding_window=8),
    "qwen2": lambda: _decoder("Qwen2ForCausalLM", "Qwen2Config"),
    "qwen3": lambda: _decoder("Qwen3ForCausalLM", "Qwen3Config", head_dim=8),
    "gemma2": lambda: _decoder("Gemma2ForCausalLM", "Gemma2Config", head_dim=8),
    "phi": lambda: _decoder("PhiForCausalLM", "PhiConfig", resid_pdrop=0.0),
    "olmo2": lambda: _decoder("Olmo2ForCausalLM", "Olmo2Config"),
    "bert": lambda: _encoder("BertForMaskedLM", "BertConfig", "logits"),
    "roberta": lambda: _encoder("RobertaModel", "RobertaConfig", pad_token_id=1),
    "electra": lambda: _encoder("ElectraModel", "ElectraConfig", embedding_size=16),
    "albert": lambda: _encoder("AlbertModel", "AlbertConfig", embedding_size=16),
    "distilbert": lambda: _make(
        "DistilBertModel",
        "DistilBertConfig",
        "last_hidden_state",
        {"input_ids": tokens()},
        vocab_size=VOCABULARY,
        dim=WIDTH,
        hidden_dim=2 * WIDTH,
        n_layers=DEPTH,
        n_heads=HEADS,
        dropout=0.0,
        attention_dropout=0.0,
    ),
    "deberta_v2": lambda: _encoder(
        "DebertaV2Model", "DebertaV2Config", relative_attention=True, pos_att_type=["p2c", "c2p"]
    ),
    "t5": t5,
    "bart": bart,
    "whisper": whisper,
    "clip": clip,
    "swin": swin,
    "segformer": segformer,
    "wav2vec2": wav2vec2,
    "mamba": mamba,
}
