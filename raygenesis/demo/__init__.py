"""A data set to try everything on, made here."""
