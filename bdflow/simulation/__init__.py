"""Scenes, brains and small datasets in NSD's own files, with a planted truth."""
