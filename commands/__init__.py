"""The commands, one module each; `cli.py` has their entry points."""
