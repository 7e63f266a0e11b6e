"""``FLMRModelForRetrieval`` with the original's ``query``, ``doc``, and ``forward`` with its losses.

The original crashes on a text-only query with default flags, on an image-only query of PreFLMR, on several images or
precomputed features with PreFLMR, on ``keep_dims=False`` and on gathering without a process group; here they work.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from compat.flmr_tokenizers import FLMRContextEncoderTokenizer, FLMRQueryEncoderTokenizer
from core import distributed
from core.batch import Batch
from core.errors import UserError
from core.files import read_object
from core.maxsim import maxsim, maxsim_pairs
from core.tokens import TokenBatch
from core.visual import VisualBatch
from models import flmr_files
from models.flmr import FLMR
from models.towers.folders import resolve
from models.visual import assemble

Flags = bool | Sequence[bool] | None


class _Output:
    """Results are attributes; like transformers' outputs they can also be had by name or place (of those not None)."""

    def to_tuple(self) -> tuple:
        values = (getattr(self, field.name) for field in fields(self) if field.name != "tokens")
        return tuple(value for value in values if value is not None)

    def __getitem__(self, key: str | int | slice) -> Any:
        return vars(self)[key] if isinstance(key, str) else self.to_tuple()[key]


@dataclass
class FLMRQueryEncoderOutput(_Output):
    """pooler_output [B, dim]: first row, not normalised. late_interaction_output [B, rows, dim]; tokens: the same with
    the rows that count."""

    pooler_output: Tensor
    late_interaction_output: Tensor
    tokens: TokenBatch


@dataclass
class FLMRContextEncoderOutput(_Output):
    """pooler_output [N, dim]: first row, normalised. late_interaction_output [N, rows, dim], or a list of the rows that
    count with ``keep_dims=False``. context_mask [N, rows, 1] bool, also in tokens."""

    pooler_output: Tensor
    late_interaction_output: Tensor | list[Tensor]
    context_mask: Tensor | None
    tokens: TokenBatch


@dataclass
class FLMRModelForRetrievalOutput(_Output):
    """scores: [B, 1 + num_negative_examples], of each query with its own documents; of all processes' when gathered."""

    loss: Tensor
    scores: Tensor
    in_batch_negative_loss: Tensor | None
    query_late_interaction_output: Tensor
    context_late_interaction_output: Tensor


class FLMRModelForRetrieval(FLMR):
    """A retriever of this project under the original's name. Nothing is frozen unless the caller freezes it."""

    @classmethod
    def from_pretrained(
        cls, path: str | Path, query_tokenizer=None, context_tokenizer=None, *, config=None, **options
    ) -> FLMRModelForRetrieval:
        """A released folder or hub name, or a checkpoint of this project. The tokenizers are the checkpoint's own;
        given ones are only compared. config: a ``FLMRConfig`` in place of the folder's; options of its names change
        single values. Loading options of transformers have no effect, which a note says."""
        changes = {} if config is None else config.to_dict()
        changes |= {name: options.pop(name) for name in flmr_files.TOP.keys() & options.keys()}
        if told := sorted(options.keys() - {"trust_remote_code"}):
            print(f"note: from_pretrained has no use for {', '.join(told)}; the weights are float32.", file=sys.stderr)
        model = cls._changed(path, changes) if changes else super().from_pretrained(path)
        for name, given in (("query_tokenizer", query_tokenizer), ("context_tokenizer", context_tokenizer)):
            if given is not None and given.get_vocab() != model.tokenizer.tokenizer.get_vocab():
                raise UserError(
                    f"{name} has another vocabulary than '{path}'; leave it out, the checkpoint has its own."
                )
        model.freeze([])
        return model

    @classmethod
    def _changed(cls, path: str | Path, changes: dict[str, Any]) -> FLMRModelForRetrieval:
        """The checkpoint under a config.json with other values."""
        folder = resolve(str(path))
        raw = read_object(folder / "config.json", "checkpoint config")
        if not flmr_files.is_released(raw):
            raise UserError(
                f"'{path}' is not in the released layout of FLMR, whose values config and {sorted(changes)[0]} are; "
                "leave them out, or change its config.json."
            )
        return flmr_files.load(cls, folder, {**raw, **changes})

    @property
    def device(self) -> torch.device:
        return self.query_tower.linear.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.query_tower.linear.weight.dtype

    def save_pretrained(self, path: str | Path, provenance: dict | None = None, layout: str = "hub", **ignored) -> None:
        """Write the released layout, tokenizer folders included, or with ``layout="own"`` this project's."""
        super().save_pretrained(path, provenance, layout)

    @property
    def query_tokenizer(self) -> FLMRQueryEncoderTokenizer:
        return FLMRQueryEncoderTokenizer(self.tokenizer, **self._tokenizer_settings())

    @property
    def context_tokenizer(self) -> FLMRContextEncoderTokenizer:
        return FLMRContextEncoderTokenizer(self.tokenizer, **self._tokenizer_settings())

    def _tokenizer_settings(self) -> dict:
        stage = self.config.eval
        lengths = {"query_maxlen": stage.query_maxlen, "doc_maxlen": stage.doc_maxlen}
        return {**lengths, "attend_to_mask_tokens": self.attends()}

    # ---- the original's module names, for freezing and looking

    @property
    def query_text_encoder(self):
        return self.query_tower.trunk

    @property
    def context_text_encoder(self):
        return self.text.trunk

    @property
    def query_text_encoder_linear(self):
        return self.query_tower.linear

    @property
    def context_text_encoder_linear(self):
        return self.text.linear

    @property
    def query_vision_encoder(self):
        return self.vision

    @property
    def context_vision_encoder(self):
        return self.vision if self.document_vision is None else self.document_vision

    @property
    def query_vision_projection(self):
        return self.fusion.projection

    @property
    def context_vision_projection(self):
        own = self.fusion.document_projection
        return self.fusion.projection if own is None else own

    @property
    def transformer_mapping_input_linear(self):
        return self.fusion.mapping_input

    @property
    def transformer_mapping_network(self):
        return self.fusion.mapping

    @property
    def transformer_mapping_output_linear(self):
        return self.fusion.mapping_output

    # ---- encoding

    def query(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        concat_output_from_vision_encoder: Flags = None,
        concat_output_from_text_encoder: Flags = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> FLMRQueryEncoderOutput:
        """Vectors of B queries: text rows, then those of the R images, then those of their patches.

        input_ids, attention_mask: [B, T]. pixel_values: [B, 3, H, W] or [B, R, 3, H, W]. image_features instead: the
        ViT's last-layer CLS vectors, [B, Hv] or [B, R, Hv]; with a mapping network each with the patches of the
        last layer but one behind it, [B, 1 + P, Hv] or [B, R, 1 + P, Hv]. The flags say which rows are part of the
        output: None is the config's word on what is given; two lists of B bools switch per query, rows that are off are
        zero.
        """
        _no_inner_values(output_attentions, output_hidden_states)
        images, counts = self._images(pixel_values, image_features, patches=self.config.mapping is not None)
        size = _batch_size(input_ids, attention_mask, counts, "query")
        rows = self.config.eval.rows
        vision = _flag(concat_output_from_vision_encoder, {"global", "mapped"} & {*rows}, images is not None, "image")
        text = _flag(concat_output_from_text_encoder, "text" in rows, input_ids is not None, "text")
        switches = _switches(vision, text, size)
        wanted = [k for k, on in (("text", text), ("global", vision), ("mapped", vision)) if switches or on]
        if input_ids is not None and "text" in wanted:
            self._tell_of_ids(input_ids)
        if input_ids is None:  # an empty question stands beside the images; only the mapping network reads it
            input_ids, attention_mask = self._empty(size)
        tensors = {"ids": input_ids, "mask": attention_mask, "has_text": input_ids.new_ones(size, dtype=torch.bool)}
        parts = self.query_parts(_batch(tensors, images if "global" in wanted else None, counts), wanted)
        if switches:
            on = {k: torch.tensor(v, device=input_ids.device) for k, v in (("text", text), ("global", vision))}
            on["mapped"] = on["global"]
            parts = [(k, rows * on[k][:, None, None], counts_ & on[k][:, None]) for k, rows, counts_ in parts]
        found = assemble(parts, {})
        return FLMRQueryEncoderOutput(parts[0][1][:, 0], found.embeddings, found)

    def doc(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        concat_output_from_vision_encoder: Flags = None,
        concat_output_from_text_encoder: Flags = None,
        keep_dims: bool = True,
        return_mask: bool = True,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> FLMRContextEncoderOutput:
        """Vectors of N documents: rows of their images, then the text's; [PAD] and punctuation are zero and masked.

        Arguments as ``query``'s, features are CLS vectors. A list as a flag counts as on when it is not empty, as in
        the original: documents have no switches of their own.
        """
        _no_inner_values(output_attentions, output_hidden_states)
        images, counts = self._images(pixel_values, image_features, patches=False)
        size = _batch_size(input_ids, attention_mask, counts, "document")
        rows = self.config.eval.document_rows
        vision, text = _whole(concat_output_from_vision_encoder), _whole(concat_output_from_text_encoder)
        vision = _flag(vision, "global" in rows, images is not None, "image")
        text = _flag(text, "text" in rows, input_ids is not None, "text")
        _switches(vision, text, size)
        if input_ids is None:
            input_ids = torch.full((size, 1), self.tokenizer.pad_id, device=self.text.linear.weight.device)
            attention_mask = torch.ones_like(input_ids)
        keep = self.tokenizer.keep(input_ids, self.config.eval.mask_punctuation)
        tensors = {"ids": input_ids, "mask": attention_mask, "keep": keep}
        tensors["has_text"] = input_ids.new_ones(size, dtype=torch.bool)
        wanted = [k for k, on in (("global", vision), ("text", text)) if on]
        found = assemble(self.document_parts(_batch(tensors, images if vision else None, counts), wanted), {})
        out = found.embeddings if keep_dims else found.unpad()
        mask = found.mask.unsqueeze(-1) if return_mask else None
        return FLMRContextEncoderOutput(found.embeddings[:, 0], out, mask, found)

    def _tell_of_ids(self, ids: Tensor) -> None:
        """``_tell_of_separators`` of tokenised queries."""
        if self.separator_id is None or getattr(self, "_told", False):
            return
        lacking = (~(ids == self.separator_id).any(1)).nonzero().flatten().tolist()
        if lacking:
            self._told = True
            print(
                f"warning: row {lacking[0]} of input_ids has no '{self.config.instruction_separator}' within "
                f"{ids.shape[1]} tokens, so all its rows count, an instruction's too; write 'instruction: question', "
                "and a shorter instruction if it was cut off. (Said once.)",
                file=sys.stderr,
            )

    def _images(self, pixels, features, patches: bool) -> tuple[VisualBatch | None, tuple[int, int] | None]:
        """All images of the batch one after another, and (B, images per item)."""
        if pixels is not None and features is not None:
            raise UserError("pixel_values and image_features are both given; give one of them.")
        for name, given in (("pixel_values", pixels), ("image_features", features)):
            if given is not None and not isinstance(given, Tensor):
                raise UserError(
                    f"{name} is a {type(given).__name__}, not a tensor; stack one entry per text (torch.stack)."
                )
        if (pixels is not None or features is not None) and self.vision is None:
            raise UserError("images are given, but this checkpoint reads text only (use_vision_encoder is false).")
        if pixels is not None:
            if pixels.ndim not in (4, 5) or pixels.shape[-3] != 3:
                raise UserError(
                    f"pixel_values is {tuple(pixels.shape)}; give [B, 3, H, W], or [B, R, 3, H, W] for several images."
                )
            shape = (len(pixels), pixels.shape[1] if pixels.ndim == 5 else 1)
            return VisualBatch(pixels=pixels.flatten(0, 1) if pixels.ndim == 5 else pixels), shape
        if features is None:
            return None, None
        width, per_image = self.vision.hidden_size, 2 if patches else 1  # dimensions of one image's features
        wanted = "[B, 1 + P, Hv] or [B, R, 1 + P, Hv]: CLS, then patches" if patches else "[B, Hv] or [B, R, Hv]"
        if features.ndim not in (per_image + 1, per_image + 2) or features.shape[-1] != width:
            raise UserError(f"image_features is {tuple(features.shape)}; this model wants {wanted}, with Hv = {width}.")
        several = features.ndim == per_image + 2
        shape = (len(features), features.shape[1] if several else 1)
        flat = features.flatten(0, 1) if several else features
        return VisualBatch(global_=flat[:, 0] if patches else flat, patches=flat[:, 1:] if patches else None), shape

    def _empty(self, size: int) -> tuple[Tensor, Tensor]:
        """ids and mask of empty questions, as the query tokenizer makes them."""
        device = self.query_tower.linear.weight.device
        return tuple(t.to(device) for t in self.tokenize("query", [""] * size))

    def rerank(
        self, query: Any, documents: Sequence, k: int | None = None, batch_size: int = 64
    ) -> list[tuple[int, int, float]]:
        """[(position in ``documents``, rank, score), ...] of the k best (None: all) by exact MaxSim, best first.

        query: a text, (text, features, None), (text, None, image path), or the output of ``query`` for one query.
        documents: of the same forms. Nothing is indexed.
        """
        from compat.flmr_collection import rerank

        return rerank(self, query, documents, k, batch_size)

    # ---- training

    def forward(
        self,
        query_input_ids: Tensor | None = None,
        query_attention_mask: Tensor | None = None,
        query_pixel_values: Tensor | None = None,
        query_image_features: Tensor | None = None,
        context_input_ids: Tensor | None = None,
        context_attention_mask: Tensor | None = None,
        context_pixel_values: Tensor | None = None,
        context_image_features: Tensor | None = None,
        use_in_batch_negatives: bool = True,
        in_batch_negatives_from_all_gpus: bool = False,
        num_negative_examples: int = 1,
        query_concat_output_from_vision_encoder: Flags = None,
        query_concat_output_from_text_encoder: Flags = None,
        context_concat_output_from_vision_encoder: Flags = None,
        context_concat_output_from_text_encoder: Flags = None,
        return_dict: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> FLMRModelForRetrievalOutput | tuple:
        """Loss and scores of B queries and their B * (1 + num_negative_examples) documents, each positive first.

        use_in_batch_negatives: cross-entropy of each query over all documents of the batch; else over its own.
        in_batch_negatives_from_all_gpus: over the documents of all processes. Every process has the same loss, and its
        gradient is the number of processes times its share, so that the average which DistributedDataParallel takes is
        the gradient of one process with the whole batch. (The original's is that divided by the number of processes.)
        return_dict: False gives a tuple of the fields, in their order and with None.
        """
        _no_inner_values(output_attentions, output_hidden_states)
        asked = self.query(
            query_input_ids, query_attention_mask, query_pixel_values, query_image_features,
            query_concat_output_from_vision_encoder, query_concat_output_from_text_encoder,
        )  # fmt: skip
        answers = self.doc(
            context_input_ids, context_attention_mask, context_pixel_values, context_image_features,
            context_concat_output_from_vision_encoder, context_concat_output_from_text_encoder,
        )  # fmt: skip
        queries, documents = asked.tokens, answers.tokens
        nways = 1 + num_negative_examples
        if len(documents) != nways * len(queries):
            raise UserError(
                f"{len(documents)} documents do not make {nways} for each of {len(queries)} queries; give one positive "
                f"and num_negative_examples={num_negative_examples} negatives per query, query by query."
            )
        if in_batch_negatives_from_all_gpus:
            queries, documents = distributed.gather_tokens(queries), distributed.gather_tokens(documents)
        first = torch.arange(len(queries), device=queries.embeddings.device) * nways
        if use_in_batch_negatives:
            everything = maxsim(queries, documents)
            scores = everything.gather(1, first[:, None] + torch.arange(nways, device=first.device))
            in_batch = loss = cross_entropy(everything, first)
        else:
            scores, in_batch = maxsim_pairs(queries, documents), None
            loss = cross_entropy(scores, torch.zeros_like(first))
        found = (loss, scores, in_batch, asked.late_interaction_output, answers.late_interaction_output)
        return found if return_dict is False else FLMRModelForRetrievalOutput(*found)


def _batch(tensors: dict[str, Tensor], images: VisualBatch | None, counts: tuple[int, int] | None) -> Batch:
    """Every item with the same number of images, or without any."""
    ids = tensors["ids"]
    each = counts[1] if images is not None else 0
    return Batch(tensors, images, torch.arange(len(ids) + 1, device=ids.device) * each)


def _no_inner_values(*asked: bool | None) -> None:
    if any(asked):
        raise UserError("attention maps and hidden states are not kept; leave out output_attentions and the like.")


def _batch_size(ids: Tensor | None, mask: Tensor | None, counts: tuple[int, int] | None, what: str) -> int:
    if ids is None and counts is None:
        raise UserError(f"a {what} needs input_ids or an image; give at least one of them.")
    if ids is not None and (mask is None or mask.shape != ids.shape):
        found = "missing" if mask is None else f"{tuple(mask.shape)}"
        raise UserError(f"attention_mask is {found}, input_ids {tuple(ids.shape)}; give what the tokenizer returned.")
    if ids is not None and counts is not None and counts[0] != len(ids):
        raise UserError(
            f"there are images for {counts[0]} and texts for {len(ids)} {what} rows; give one entry of images per text "
            "(a black image and a concat list for those without)."
        )
    return counts[0] if ids is None else len(ids)


def _whole(flag: Flags) -> bool | None:
    """``doc`` has no switches per document: the original took a list for its truth."""
    if isinstance(flag, (list, tuple)):
        if not all(flag):
            print("warning: doc() takes no switches per document; a list counts as on.", file=sys.stderr)
        return bool(flag)
    return flag


def _flag(flag: Flags, usual, given: bool, what: str) -> bool | list[bool]:
    """What a concat flag comes to: the config's word where it is None and there is something to show."""
    if flag is None:
        return bool(usual) and given
    flag = flag.tolist() if hasattr(flag, "tolist") else flag  # of an array or a tensor
    flag = [bool(f) for f in flag] if isinstance(flag, (list, tuple)) else bool(flag)
    if not given and (flag is True or (isinstance(flag, list) and any(flag))):
        raise UserError(
            f"the output is to have rows of the {what}, but no {what} is given; give it or leave the flag out."
        )
    return flag


def _switches(vision: bool | list[bool], text: bool | list[bool], size: int) -> bool:
    """Whether the flags are lists, one bool per query; both or neither."""
    lists = [isinstance(f, list) for f in (vision, text)]
    if any(lists):
        if not all(lists) or len(vision) != size or len(text) != size:
            raise UserError(f"concat flags per query are two lists of {size} bools; give both, of that length.")
        return True
    if not vision and not text:
        raise UserError("neither text nor image is to be part of the output; switch one of them on.")
    return False
