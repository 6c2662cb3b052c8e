"""The synonym grammar: a corpus in which the probability of every word is known."""

from .grammar import Grammar, SynonymSet
