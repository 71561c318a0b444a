"""Linear one-versus-rest classification on words: each label reads words directly, through chosen
pairs (label, word).

`pairs` chooses the pairs, `model` trains and predicts, `fitting` is the whole training, `estimate`
what it will need. All of it is NumPy, SciPy and libfanin.
"""
