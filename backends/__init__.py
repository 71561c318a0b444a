"""Framework adapters behind one interface.

`interface` holds what the harness sees and names no framework; `arrays` makes everything random
(initial weights, rewired sources) in NumPy so that both frameworks start and stay equal;
`torch` and `tensorflow` each hold the op, the layer and the trainer of one framework. Importing
`fanin.backends` imports neither.
"""
