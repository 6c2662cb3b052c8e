"""How parameters are updated: optimizers and learning-rate schedules, a class each."""
