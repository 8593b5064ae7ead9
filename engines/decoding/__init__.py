"""Pictures and their times out of files and streams, one set of rules for live use, teaching, training and evaluation.

Knows no datasets, models or cameras; may import `engines.errors` only."""
