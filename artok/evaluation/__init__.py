"""One model measured or shown: evaluator, samples, reconstructions, statistics."""
