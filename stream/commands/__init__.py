"""The command line, a file for each group of commands; `cli.py` puts them together. Imported by nothing else."""
