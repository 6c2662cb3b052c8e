"""Word pairs and substitutions: lists, WordNet, SWORDS, CoInCo."""
