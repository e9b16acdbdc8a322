"""Hand-written material of the trivia data set: facts, wordings, near misses."""
