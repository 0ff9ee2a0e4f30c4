"""The rules: pure functions and frozen values; no network, no database, no clock, no log."""
