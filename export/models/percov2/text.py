"""Text towers: CLIP-L, CLIP-G and T5 of Stable Diffusion 3, as graphs, with their tokenizers.

ids of each tower -> hidden states and pooled vectors -> one text (n,L,D) and one pooled (n,P):
CLIP's hidden states side by side and padded with zeros to D, then T5's, or zeros, behind them.
The towers are transformers' own modules.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from percoedge.errors import BundleError
from percoedge.export.config import Config

CLIP_TOWERS = ("clip_l", "clip_g")


def build_tower(name: str, table: dict[str, Any]) -> nn.Module:
    """A tower of transformers: CLIPTextModelWithProjection, or T5EncoderModel for ``t5``."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    config = T5Config.from_dict(table) if name == "t5" else CLIPTextConfig.from_dict(table)
    config._attn_implementation = "eager"  # the others trace to more nodes, or not at all
    return T5EncoderModel(config) if name == "t5" else CLIPTextModelWithProjection(config)


def tower_length(config: Config, name: str) -> int:
    """Tokens that a tower takes: always so many, padded or cut."""
    clip = int(config.text["clip_l"].get("max_position_embeddings", 77))
    return config.flow.text_tokens - clip if name == "t5" else clip


class ClipGraph(nn.Module):
    """ids int32 (n,77) -> last but one hidden states (n,77,W) and projection (n,P), float32."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states and projections of ids; see the class."""
        output = self.tower(input_ids=ids, output_hidden_states=True)
        return output.hidden_states[-2].float(), output.text_embeds.float()


class T5Graph(nn.Module):
    """ids int32 (n,l) -> hidden states (n,l,D) float32.

    What the feed-forward layers add to the residual stream overflows FP16 in T5-XXL, so the last
    of their matrices and, by that, the stream stay in FP32.
    """

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        for block in tower.encoder.block:
            block.layer[-1].DenseReluDense.wo.float()

    def forward(self, ids: Tensor) -> Tensor:
        """Hidden states of ids; see the class."""
        hidden: Tensor = self.tower(input_ids=ids)[0]
        return hidden.float()


class JoinGraph(nn.Module):
    """Outputs of the towers -> text (n,``tokens``,``width``) and pooled (n,P), float32."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.tokens, self.width = tokens, width

    def forward(
        self,
        clip_l: Tensor,
        clip_l_pooled: Tensor,
        clip_g: Tensor,
        clip_g_pooled: Tensor,
        t5: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Text and pooled text of the towers' outputs; see the class."""
        text = torch.cat([clip_l, clip_g], dim=-1)
        text = F.pad(text, (0, self.width - text.shape[2]))
        if t5 is None:
            text = F.pad(text, (0, 0, 0, self.tokens - text.shape[1]))
        else:
            text = torch.cat([text, t5], dim=1)
        return text, torch.cat([clip_l_pooled, clip_g_pooled], dim=-1)


@torch.no_grad()
def null_condition(
    config: Config, towers: nn.ModuleDict, tokenizers: dict[str, str]
) -> tuple[Tensor, Tensor]:
    """text (1,L,D) and pooled (1,P) of an empty caption, values of FP16 in float32.

    ``tokenizers``: JSON by tower.
    """
    from tokenizers import Tokenizer

    parts: dict[str, Tensor] = {}
    for name, tower in towers.items():
        ids = torch.tensor([Tokenizer.from_str(tokenizers[name]).encode("").ids])
        if name == "t5":
            parts[name] = T5Graph(tower)(ids)
        else:
            parts[name], parts[f"{name}_pooled"] = ClipGraph(tower)(ids)
    join = JoinGraph(config.flow.text_tokens, config.flow.joint_attention_dim)
    text, pooled = join(**parts)
    return text.half().float(), pooled.half().float()


def read_tokenizer(folder: Path, length: int) -> str:
    """The tokenizer of a folder in the layout of transformers, padding and cutting to ``length``.

    Returns it as one JSON text, all that the package ``tokenizers`` needs. Raises BundleError.
    """
    from transformers import AutoTokenizer

    if not folder.is_dir():
        raise BundleError(f"expected a folder with a tokenizer, found no {folder}")
    try:
        loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        tokenizer = loaded.backend_tokenizer
    except Exception as error:  # the library's errors have no common base
        raise BundleError(f"{folder}: expected a tokenizer of transformers: {error}") from error
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=loaded.pad_token_id, pad_token=loaded.pad_token)
    text: str = tokenizer.to_str()
    return text


def byte_tokenizer(config: Config, name: str) -> str:
    """A tokenizer for towers without trained weights: a token per byte, and the ends of the text.

    Ids are those of the tower's beginning and end; JSON as from ``read_tokenizer``.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    table, length = config.text[name], tower_length(config, name)
    ends = {"<end>": int(table["eos_token_id"])}
    if name in CLIP_TOWERS:
        ends["<start>"] = int(table["bos_token_id"])
    free = (i for i in range(int(table["vocab_size"])) if i not in ends.values())
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = dict(zip(alphabet, free, strict=False)) | ends
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>" if "<start>" in ends else "$A <end>",
        special_tokens=list(ends.items()),
    )
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=ends["<end>"], pad_token="<end>")
    text: str = tokenizer.to_str()
    return text
