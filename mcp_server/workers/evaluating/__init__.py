"""What the evidence workers share: load a model, remember its answers, run lm-eval. Imported by workers only."""
