"""Detectors of runaways: pure, one file each, fed with settled calls in the order of the record."""
