"""Tiny Hugging Face models with attention spelled out (``eager``), random weights, and their inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

LENGTH = 7
COMMON: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}


class Logits(nn.Module):
    """The model as a function of token ids alone that returns its first output."""

    def __init__(self, model: Any, decoder: bool = False) -> None:
        super().__init__()
        self.model = model
        self.decoder = decoder

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        more = {"decoder_input_ids": ids} if self.decoder else {"use_cache": False}
        if mask is not None:
            more["attention_mask"] = mask
        return self.model(input_ids=ids, return_dict=True, **more)[0]


def build(name: str) -> nn.Module:
    """The model called ``name`` in evaluation mode."""
    import transformers as hf

    torch.manual_seed(0)
    width = {"vocab_size": 50, "hidden_size": 32}
    wide = {**width, "num_hidden_layers": 2, "num_attention_heads": 4}
    t5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    opt = {"ffn_dim": 48, "max_position_embeddings": 32, "word_embed_proj_dim": 32}
    grouped = {**COMMON, "num_key_value_heads": 2, "head_dim": 8}
    configs = {
        "gpt2": lambda: hf.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=32),
        "llama": lambda: hf.LlamaConfig(**grouped),
        "mistral": lambda: hf.MistralConfig(**grouped, sliding_window=4),
        "gemma2": lambda: hf.Gemma2Config(**grouped, sliding_window=4),
        "bert": lambda: hf.BertConfig(**COMMON),
        "t5": lambda: hf.T5Config(vocab_size=50, **t5),
        "qwen3": lambda: hf.Qwen3Config(**grouped),
        "opt": lambda: hf.OPTConfig(**wide, **opt),
        "bloom": lambda: hf.BloomConfig(**width, n_layer=2, n_head=4),
        "gpt_neox": lambda: hf.GPTNeoXConfig(**COMMON),
        "falcon": lambda: hf.FalconConfig(**wide),
        "mpt": lambda: hf.MptConfig(vocab_size=50, d_model=32, n_heads=4, n_layers=2, max_seq_len=32),
    }
    config = configs[name]()
    config._attn_implementation = "eager"
    kinds = {"bert": hf.AutoModel, "t5": hf.AutoModelForSeq2SeqLM}
    kind = kinds.get(name, hf.AutoModelForCausalLM)
    model = kind.from_config(config, attn_implementation="eager").eval()
    return Logits(model, decoder=name == "t5")
