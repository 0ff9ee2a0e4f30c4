"""The program: everything that waits, listens or prints."""
