"""From a person's arrays to a model in use: the estimator, its files, and prediction in NumPy.

`classifier` has scikit-learn's conventions and trains in either backend. `saved` writes and reads a
model's folder; `predictor` needs neither a framework nor scikit-learn.
"""
