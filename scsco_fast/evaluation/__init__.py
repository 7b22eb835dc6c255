"""Scores of a method on a data set: protocols, metrics, references without a network, comparisons."""
