"""What is asked and what can answer. ``dataset/<name>.py`` is one data set; ``data.name`` in a YAML is its module."""

from __future__ import annotations

from core.names import Room

PLANNED = frozenset({"aokvqa", "okvqa", "okvqa_gs", "remuq", "vl_ict"})
"""What the published recipes in cfgs/ train on and no module reads yet."""

HELPERS = {"records_json", "draw", "m2kr_rows", "m2kr_instructions"}

room = Room("dataset", key="data.name", what="data sets", helpers=HELPERS, planned=PLANNED)
names, module, config_class = room.names, room.module, room.config_class


def build(config):
    """The data set of a validated ``data`` section."""
    return module(config.name).build(config)
