"""Usage of model calls, read from their answers while these stream through. Pure; no prices."""
