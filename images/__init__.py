"""What is on disk: readers and writers of image formats.

Invariants: synchronous and deterministic; no threads, no clock of its own, no network.
"""
