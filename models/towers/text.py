"""Text tower: a BERT-like trunk and a linear projection to the late-interaction space."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from core.errors import UserError
from models.keys.towers import match
from models.towers.folders import assign, read_weights, resolve, tower_config
from models.towers.multivector import modules_of, projection, trunk_folder

GROUP_TOKENS = defaultdict(lambda: 4096, cpu=96)
"""How many tokens of padding one more pass through the trunk is worth: a GPU wants large batches."""

FEW = 8
"""Fewer texts are not divided."""


class TextTower(nn.Module):
    """trunk(ids, mask) -> [B, L, h]; linear -> [B, L, dim], no bias (ColBERT)."""

    def __init__(self, config, dim: int, pooler: bool = True) -> None:
        """pooler: keep BERT's pooler. It feeds nothing, but the originals' files hold it and get it back."""
        super().__init__()
        from transformers import AutoModel

        try:
            self.trunk = AutoModel.from_config(config).float()
        except (ValueError, TypeError) as error:  # a wrong kind of value shows here in early 5.x
            reason = str(error).splitlines()[0][:200]
            raise UserError(
                f"a text tower of type '{config.model_type}' cannot be built ({reason}); give a BERT-like encoder."
            ) from None
        self.linear = nn.Linear(config.hidden_size, dim, bias=False)
        if not pooler:
            self.trunk.pooler = None

    @property
    def hidden_size(self) -> int:
        return self.trunk.config.hidden_size

    @property
    def positions(self) -> int | None:
        """The longest text in tokens; None where positions are rotary or relative, which have no table to run out."""
        table = getattr(getattr(self.trunk, "embeddings", None), "position_embeddings", None)
        if not isinstance(table, nn.Embedding):
            return None
        # RoBERTa and MPNet count from behind their padding index.
        return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)

    def states(self, ids: Tensor, mask: Tensor, only_attended: bool = False) -> Tensor:
        """Trunk states [B, L, h] of ids [B, L]; ``mask`` [B, L] says which positions are attended.

        only_attended: the caller reads no others, and they stand at the end (padding). Then texts of about one length
        go through the trunk together, and little padding does; what stands at other positions means nothing.
        """
        if self.positions is not None and ids.shape[1] > self.positions:
            raise UserError(
                f"a text has {ids.shape[1]} tokens, but the text tower has {self.positions} positions "
                "(max_position_embeddings in its config.json); lower query_maxlen or doc_maxlen."
            )
        groups = []
        if only_attended and not self._is_sliced():
            groups = groups_by_length(mask.sum(1).tolist(), GROUP_TOKENS[mask.device.type])
        if len(groups) < 2:
            return self.trunk(input_ids=ids, attention_mask=mask).last_hidden_state
        parts, order = [], torch.tensor([row for rows, _ in groups for row in rows], device=ids.device)
        for rows, length in groups:
            index = torch.tensor(rows, device=ids.device)
            found = self.trunk(input_ids=ids[index, :length], attention_mask=mask[index, :length]).last_hidden_state
            parts.append(pad(found, (0, 0, 0, ids.shape[1] - length)))
        return torch.cat(parts)[order.argsort()]

    def _is_sliced(self) -> bool:
        """Whether processes share the weights (FSDP): then all of them must go through the trunk equally often."""
        return any(hasattr(p, "placements") for p in self.trunk.parameters())

    def project(self, states: Tensor) -> Tensor:
        """[B, L, h] -> [B, L, dim], not normalised."""
        return self.linear(states.to(self.linear.weight.dtype))


def groups_by_length(lengths: Sequence[int], each: int, cuts: int = 16) -> list[tuple[list[int], int]]:
    """Rows in groups of about one length, and each group's longest: the fewest computed positions, where a group costs
    ``each`` positions more. Groups begin at one of ``cuts`` places in the order of length."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    cuts = cuts if len(order) >= FEW else 1
    ends = sorted({len(order) * k // cuts for k in range(1, cuts + 1)} - {0})
    best: dict[int, tuple[int, int]] = {0: (0, 0)}  # end -> (cost of all before it, where its group starts)
    for end in ends:
        longest = lengths[order[end - 1]]
        best[end] = min((best[s][0] + (end - s) * longest + each, s) for s in best if s < end)
    groups, end = [], len(order)
    while end:
        start = best[end][1]
        groups.append((order[start:end], max(1, lengths[order[end - 1]])))
        end = start
    return groups


def load_text_tower(name: str, dim: int, root: str | Path | None = None) -> tuple[TextTower, list[str], Path]:
    """Build from any folder of ``text_weights``; local folder or hub name.

    Returns the tower, the weights left at their initial value, and the folder (for its tokenizer and conventions).
    """
    folder = resolve(name, root)
    config, tensors = text_weights(folder)
    if "linear.weight" in tensors and tensors["linear.weight"].shape[0] != dim:
        raise UserError(
            f"model.dim is {dim} but '{name}' projects to {tensors['linear.weight'].shape[0]}; set model.dim to that."
        )
    tower = TextTower(config, dim)
    names = trunk_names(config.model_type, list(tower.trunk.state_dict()), tensors)
    missing = [f"text.trunk.{k}" for k in assign(tower.trunk, tensors, names)]
    missing += [f"text.linear.{k}" for k in assign(tower.linear, tensors, {"weight": "linear.weight"})]
    if any(m.startswith("text.trunk.pooler.") for m in missing):
        tower.trunk.pooler = None  # feeds nothing; a checkpoint without it is complete
        missing = [m for m in missing if not m.startswith("text.trunk.pooler.")]
    return tower, missing, folder


def text_weights(folder: Path) -> tuple:
    """(Hugging Face config, tensors) of a text tower's folder, recognised by its files.

    modules.json      PyLate or sentence-transformers: the trunk's tensors, and the Dense layers as ``linear.weight``
    ``linear.weight`` a ColBERT folder: one file with ``bert.*`` and the projection
    else              a plain encoder without a projection
    """
    trunk = trunk_folder(folder)
    config, tensors = tower_config(trunk), read_weights(trunk)
    modules = modules_of(folder)
    matrix = projection(modules) if modules else None
    return config, tensors if matrix is None else {**tensors, "linear.weight": matrix}


def trunk_names(family: str, own: list[str], tensors: dict[str, Tensor]) -> dict[str, str]:
    """own name -> the file's name. Files of task models put a prefix in front of the trunk's ("bert.", "model.")."""
    prefixes = {found[1] for k in tensors if (found := re.match(r"((?:.*?\.)?)embeddings\.", k))}
    if not prefixes:
        raise UserError("the text checkpoint has no '*embeddings.*' weights; give a BERT-like encoder folder.")
    tables = [match(family, own, list(tensors), prefix)[0] for prefix in sorted(prefixes)]
    return max(tables, key=len)
