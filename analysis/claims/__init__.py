"""The article's claims about stability, each tested on a suite's runs: one file a claim."""
