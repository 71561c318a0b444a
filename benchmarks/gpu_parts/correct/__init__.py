"""Part `correct`: every op against float64 on fresh random inputs, with outputs poisoned by NaN.

A case calls one op on one shape and checks each of its outputs (`bench`). The cases of each op have
a file; `cases` puts them in order.
"""
