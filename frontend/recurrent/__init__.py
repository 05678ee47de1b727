"""Recurrent models: their modules are traced as they decode, one token at a time."""
