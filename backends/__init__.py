"""Framework adapters behind one interface.

`setup` says what a model is, `registry` which backends there are, `trainer` trains a model in any
of them. `torch` and `tensorflow` each hold ops, layers and both executions of one framework.
Importing `fanin.backends` imports neither. README.md has the map.
"""
