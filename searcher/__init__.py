"""The web demo: one engine (model and index), an HTTP interface to it and one page. Started by ``runs.serve``."""
