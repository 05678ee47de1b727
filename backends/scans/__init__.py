"""Recurrences, as a backend sees them: which values one token stores, in which order, and what of
it is independent of the rest."""
