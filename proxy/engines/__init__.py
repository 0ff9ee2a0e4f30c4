"""Engines: each speaks the wire and asks the gate; none holds a rule."""
