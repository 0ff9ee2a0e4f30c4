"""The command line: read options, call one function, print. `main.py` is the entry."""
