"""What the base gives to pairs of answers: computed once per study, before any training."""
