"""Framework adapters behind one interface.

`interface` holds what the harness sees and names no framework; `arrays` makes everything random
(initial weights, rewired sources) in NumPy so that both frameworks start and stay equal; `fused`
is the trainer of the fused execution, but for what a framework adds to it; `torch` and `tensorflow`
each hold ops, layers and the autograd trainer of one framework. Importing `fanin.backends` imports
neither.
"""
