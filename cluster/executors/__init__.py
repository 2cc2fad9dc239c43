"""Executors: serial, Dask, Ray."""
