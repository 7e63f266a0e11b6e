"""The contestants: each makes the same batches and reports the seconds of every step.

``plain``   the published step, everything computed in every step, padded to the configured lengths
``cached``  the same, padded to the longest of the batch, and what is frozen taken out of memory
``ours``    ``training.loop.fit`` as ``train_retrieval.py`` calls it
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from core.device import autocast
from core.records import Example
from core.visual import StoredVisual
from steps import cost, plain, setting
from training.batches import Collator, Order
from training.config import Config
from training.loop import fit
from training.objective import from_config
from training.parallel import train_mode
from training.states import for_training

LR = 1e-5
FIRST = 16
"""Examples whose loss is compared before any clock runs."""

WARM = 1
"""Steps in front of every turn that are not timed (plain on a CPU has none: its step takes a minute)."""


class Arm:
    """One contestant. A turn is a seed: the same batches for everybody, other ones in every turn."""

    name = ""

    def __init__(self, options: setting.Options) -> None:
        self.options = options
        self.made = setting.make(options)
        self.retriever = self.made.retriever
        self.visual = None
        self.out = Path(options.home) / f"run-{options.case}"

    def batches(self, turn: int, steps: int) -> list[list[Example]]:
        order = Order(self.made.dataset, self.made.dataset.train_split, self.options.batch, self.options.nways, turn)
        if len(order) < steps:
            raise ValueError(f"a turn has {len(order)} batches, {steps} steps were asked for")
        return [order.examples(i) for i in range(steps)]

    def features(self) -> None:
        """Open the feature cache, completed first."""
        if self.made.cache is None:
            return
        from runs.features import build
        from runs.settings import Visual

        store = build(
            self.made.dataset.images(), self.retriever.vision, self.retriever.pixel_source(), self.made.cache, Visual()
        )
        self.visual = StoredVisual(store)

    def prepare(self, turns: int, steps: int) -> None:
        """Once, before anything is timed."""

    def loss(self) -> float:
        """Of the first examples of turn 0, without dropout: equal for all contestants."""
        raise NotImplementedError

    def turn(self, turn: int, steps: int) -> dict:
        """{"seconds": of each timed step, "flops": of each}."""
        raise NotImplementedError

    def flops(self, batches: Sequence[Sequence[Example]]) -> list[float]:
        tokenizer, stage = self.retriever.tokenizer, self.retriever.options()
        found = []
        for examples in batches:
            texts = texts_of(examples, self.options.nways)
            documents = tokenizer.documents(texts, stage.doc_maxlen)[1].sum(1).tolist()
            queries = self.retriever.tokenize("query", [e.query.text for e in examples])[1].sum(1).tolist()
            found.append(cost.step(self.retriever, self.name, self.options.case, queries, documents))
        return found


class Plain(Arm):
    """The published step. Texts are tokenised before the clock runs, as the originals do."""

    name = "plain"
    cached = False

    def prepare(self, turns: int, steps: int) -> None:
        words = self.retriever.tokenizer
        self.words = plain.Tokenizer(words.tokenizer, words.query_marker_id, words.doc_marker_id)
        self.device = torch.device(self.options.device)
        self.optimizer = torch.optim.AdamW([p for p in self.retriever.parameters() if p.requires_grad], lr=LR)
        self.frozen_text = self.options.case == "pretrain"
        self.kept: dict[tuple[str, str], Tensor] = {}
        if self.cached:
            self.features()
            if self.frozen_text:
                for turn in range(turns):
                    for examples in self.batches(turn, WARM + steps):
                        self._keep(examples)

    @torch.no_grad()
    def _keep(self, examples: list[Example]) -> None:
        """States of the frozen trunk, in memory."""
        stage = self.retriever.options()
        asked = list({e.query.text for e in examples if ("query", e.query.text) not in self.kept})
        answers = list({t for t in texts_of(examples, self.options.nways) if ("document", t) not in self.kept})
        if asked:
            ids, mask = (t.to(self.device) for t in self.words.queries(asked, stage.query_maxlen))
            states = plain.states(self.retriever, ids, mask).cpu()
            self.kept |= {("query", text): state.clone() for text, state in zip(asked, states)}
        if answers:
            ids, mask, _ = (t.to(self.device) for t in self.words.documents(answers, stage.doc_maxlen, True))
            states = plain.states(self.retriever, ids, mask).cpu()
            for text, state, length in zip(answers, states, mask.sum(1).tolist()):
                self.kept["document", text] = state[:length].clone()

    def loss(self) -> float:
        with torch.no_grad():
            return float(self._loss(self._tokens(self.batches(0, 1)[0][:FIRST])))

    def turn(self, turn: int, steps: int) -> dict:
        train_mode(self.retriever)
        warm = 0 if self.name == "plain" and self.options.device == "cpu" else WARM  # on a CPU its step takes a minute
        batches = self.batches(turn, warm + steps)
        tokens, seconds = [self._tokens(examples) for examples in batches], []
        for one in tokens:
            start = cost.now(self.options.device, self.options.clock)
            self.optimizer.zero_grad()
            self._loss(one).backward()
            self.optimizer.step()
            seconds.append(cost.now(self.options.device, self.options.clock) - start)
        return {"seconds": seconds[warm:], "flops": self.flops(batches[warm:])}

    def _tokens(self, examples: list[Example]) -> tuple:
        stage, texts = self.retriever.options(), texts_of(examples, self.options.nways)
        queries = self.words.queries([e.query.text for e in examples], stage.query_maxlen)
        return examples, texts, queries, self.words.documents(texts, stage.doc_maxlen, self.cached)

    def _loss(self, tokens: tuple) -> Tensor:
        examples, texts, (ids, mask), (document_ids, document_mask, keep) = tokens
        made = plain.Inputs(query_mask=mask, document_keep=keep, nways=self.options.nways)
        if self.cached and self.frozen_text:
            made.query_states = torch.stack([self.kept["query", e.query.text] for e in examples])
            found = [self.kept["document", text] for text in texts]
            made.document_states = torch.nn.utils.rnn.pad_sequence(found, batch_first=True)
        else:
            made.query_ids, made.document_ids, made.document_mask = ids, document_ids, document_mask
        if self.options.case != "text":
            shown = [image for e in examples for image in e.query.images]
            if self.cached:
                stored = self.visual.fetch(shown)
                made.features = (stored.global_.to(self.device), stored.patches.to(self.device))
            else:
                made.pixels = self.retriever.pixel_source().fetch(shown).pixels
        for name, value in vars(made).items():
            if isinstance(value, Tensor):
                setattr(made, name, value.to(self.device))
        return plain.loss(self.retriever, made, self.options.visual_only, self.retriever.temperature())


class Cached(Plain):
    name = "cached"
    cached = True


class Ours(Arm):
    name = "ours"

    def prepare(self, turns: int, steps: int) -> None:
        self.features()
        self.states, self.once = None, 0.0
        if self.options.case == "pretrain":
            # All passages of the turns; a real run does it for the whole corpus.
            examples = [e for turn in range(turns) for batch in self.batches(turn, WARM + steps) for e in batch]
            documents = {d.id: d for e in examples for d in (e.positive, *e.negatives)}
            begun = time.perf_counter()
            folder = Path(self.options.home) / "text_states"
            shutil.rmtree(folder, ignore_errors=True)
            self.states = for_training(self.retriever, documents.values(), self.config(1, 0), folder)
            self.once = time.perf_counter() - begun
            for example in examples:  # a real run meets each question again in every epoch
                self.states.get("query", [example.query.text])

    def config(self, steps: int, seed: int) -> Config:
        o = self.options
        return Config(
            out=str(self.out), resume=False, steps=steps, batch_size=o.batch, nways=o.nways, seed=seed, gather=False,
            false_negatives="keep", hard_negatives="in_batch" if o.case == "text" else "own_term", lr=LR,
            clip=1.0 if o.case == "text" else None, precision="bf16", device=o.device, eval_first=False,
            cache_text_states=o.case == "pretrain",
        )  # fmt: skip

    def loss(self) -> float:
        config = self.config(1, 0)
        order = Order(self.made.dataset, self.made.dataset.train_split, config.batch_size, config.nways, config.seed)
        self.retriever.stage = "train"
        collator = Collator(order, self.retriever, self.visual, self.states)
        batch = collator.collate(order.examples(0)[:FIRST]).to(self.options.device)
        with torch.no_grad(), autocast(torch.device(self.options.device), config.precision):
            return float(from_config(config).step(batch, self.retriever)["loss"])

    def turn(self, turn: int, steps: int) -> dict:
        clock = Clock(self.options)
        shutil.rmtree(self.out, ignore_errors=True)
        fit(
            self.retriever, self.made.dataset, self.config(WARM + steps, turn), visual=self.visual, states=self.states,
            tracker=clock,
        )  # fmt: skip
        shutil.rmtree(self.out, ignore_errors=True)
        self.retriever.stage = "train"
        seconds = [b - a for a, b in zip(clock.times, clock.times[1:])][WARM - 1 :]
        return {"seconds": seconds, "flops": self.flops(self.batches(turn, WARM + steps)[WARM:])}


class Clock:
    """A tracker that keeps the time of every step: from log to log, so the whole loop counts, but no checkpoint."""

    def __init__(self, options: setting.Options) -> None:
        self.options, self.times = options, []

    def resume(self, step: int, owed: bool = False) -> None:
        pass

    def log(self, step: int, **numbers: float) -> None:
        self.times.append(cost.now(self.options.device, self.options.clock))

    def finish(self) -> None:
        pass


def texts_of(examples: Sequence[Example], nways: int) -> list[str]:
    """The documents' texts in the order of a batch."""
    return [d.text for e in examples for d in (e.positive, *e.negatives[: nways - 1])]


ARMS = {arm.name: arm for arm in (Plain, Cached, Ours)}
