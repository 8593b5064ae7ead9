"""Labelling a folder of videos that are there already, on one machine or many (Ray).
May import the rooms below: sources, the recogniser, sinks."""
