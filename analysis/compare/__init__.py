"""What a model predicts where one of several words could stand: the parts of analysis.synonyms and analysis.grammar."""
