"""Scans in, OME-Zarr out."""
