"""The base's log-probabilities of pairs of answers, computed once per study before any training."""
