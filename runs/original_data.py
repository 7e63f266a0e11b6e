"""What --dataset_name, --anno_file, --all_blocks_file and --image_dir of the originals name: a ``data`` section.

One table for the indexer and the evaluation. Not a command of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from core.answers import SUBSTRING, Rule
from core.errors import UserError
from evaluation.legacy import PATTERNS

Judged = Literal["gold", "pattern", "substring", "never"]


@dataclass(frozen=True)
class Original:
    """name: module of dataset/. anno, blocks, images: its keys that the three flags set; None: the flag is not read.

    judged: how the originals judged. gold: by ids. pattern, substring: by answers in passages (``rules``). never: MIRe
    compares ids with something else, so that nothing is ever relevant. answered_only: questions without a relevant
    passage were left out. meta: what it adds to an entry of --save_pairs: whether one of the five passages is relevant,
    the relevant id, or the answers. more: other keys of the section.
    """

    name: str
    judged: Judged
    anno: str | None = "test_path"
    blocks: str | None = "passages"
    images: str | None = "image_dir"
    answered_only: bool = False
    meta: Literal["hit", "gold", "answers"] | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def rule(self, style: str) -> Rule | None:
        """The originals' rule for answers; None where ids decide."""
        if self.judged == "pattern":
            return PATTERNS[style, self.name]
        return SUBSTRING if self.judged == "substring" else None


def _m2kr(subset: str, judged: Judged) -> Original:
    return Original(
        "m2kr", judged, anno=None, blocks=None, meta="answers", more={"subset": subset, "instructions": "stored"}
    )


TABLE: dict[str, Original] = {
    "okvqa": Original("okvqa", "pattern"),
    "okvqa_gs": Original("okvqa_gs", "pattern", answered_only=True, meta="hit"),
    "remuq": Original("remuq", "gold", images=None, answered_only=True, meta="gold"),
    "aokvqa": Original("aokvqa", "gold", blocks="test_path"),
    "fvqa": Original("fvqa", "gold"),
    "fashioniq": Original("fashioniq", "gold", meta="gold"),
    "EVQA": _m2kr("EVQA", "substring"),
    "Infoseek": _m2kr("Infoseek", "substring"),
    "OVEN": _m2kr("OVEN", "never"),
    "infoseek": Original("infoseek", "substring"),
}
"""The originals' --dataset_name -> ours. ``vid2r`` has its own (``dataset.vid2r.Published``), and ``m2kr.<subset>`` is
FLMR's evaluation (``runs.m2kr``). MIRe's command does not take its README's "infoseek"; Ret-XKnow's
did, with patterns and the bounds of a number as answers, which is not followed here."""

NAMES = ("vid2r", *TABLE)
WITH_PASSAGES = tuple(name for name, entry in TABLE.items() if entry.blocks is None)
"""Which bring their passages along, without --all_blocks_file."""


def entry_of(data, name: str | None = None) -> Original:
    """How the originals judged a data set of ours. name: their --dataset_name, where it was given."""
    config = data.config
    if name is None:
        name = config.subset if config.name == "m2kr" else config.name
    if isinstance(name, str) and name in TABLE:
        return TABLE[name]
    return _m2kr("EVQA", "substring") if config.name == "m2kr" else Original(config.name, "gold")


def original(name: str) -> Original:
    if name not in TABLE:
        raise UserError(f"--dataset_name is '{name}'; write one of {', '.join(NAMES)} or m2kr.<subset>.")
    return TABLE[name]


def built(name: str, args, anno: str | None = None):
    """The data set that the flags name. anno: of the queries; the indexer has none."""
    import dataset
    from core.config import check

    entry = original(name)
    section: dict[str, Any] = {"name": entry.name, **entry.more}
    if args.limit is not None and anno is not None:
        section["limit"] = args.limit
    given = ((entry.anno, anno), (entry.blocks, args.all_blocks_file), (entry.images, args.image_dir))
    section |= {key: value for key, value in given if key is not None and value is not None}
    if entry.anno == entry.blocks and anno is not None:
        section[entry.anno] = anno
    if entry.name == "m2kr" and args.dataset_hf_path:
        section["path"] = args.dataset_hf_path
    return dataset.build(check(dataset.config_class(section), section, f"the data set of --dataset_name {name}"))


def corpus(name: str | None, args) -> Sequence:
    """What the indexer indexes for --dataset_name and --all_blocks_file."""
    from dataset import vid2r
    from dataset.lines import LineCorpus
    from dataset.records_json import is_json_list

    if name == "vid2r" and is_json_list(args.all_blocks_file):
        return vid2r.Published(args.all_blocks_file).corpus()
    if name in TABLE and TABLE[name].name not in ("okvqa", "okvqa_gs", "remuq"):
        return built(name, args).corpus()
    return LineCorpus(args.all_blocks_file)  # a passages file is one, whatever the data set is called
