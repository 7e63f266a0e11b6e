"""What is asked and what can answer. ``dataset/<name>.py`` is one data set; ``data.name`` in a YAML is its module."""

from __future__ import annotations

from core.names import Room

HELPERS = {
    "conversations",
    "knowledge_base",
    "ledger",
    "near_duplicates",
    "sentences",
    "vid2r_ids",
    "vid2r_passages",
    "vid2r_rules",
    "wit",
    "qrels",
    "splits",
    "unpacked",
    "wiki6m",
    "records_json",
    "draw",
    "lines",
    "pairs",
    "ctxs_json",
    "tsv_images",
    "m2kr_rows",
    "m2kr_instructions",
}

room = Room("dataset", key="data.name", what="data sets", helpers=HELPERS)
names, module, config_class = room.names, room.module, room.config_class


def build(config):
    """The data set of a validated ``data`` section."""
    return module(config.name).build(config)
