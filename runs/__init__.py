"""The commands: ``python -m runs.<name>``. Thin: they parse, open, call the rooms and print."""
