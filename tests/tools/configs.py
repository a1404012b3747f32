"""Configurations that are read, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

from capstore.tools.config.load import Config, ConfigError, load


def loaded(text: str | bytes) -> Config:
    raw = text if isinstance(text, bytes) else text.encode()
    return load(raw, Path("capstore.toml").absolute())


def problems(text: str | bytes) -> list[str]:
    """What is wrong, as ``LINE: KEY: MESSAGE``."""
    try:
        loaded(text)
    except ConfigError as error:
        return [str(problem) for problem in error.problems]
    return []


def volumes(text: str) -> str:
    """A document that has these lines in `volumes`, which begin on line 1."""
    return "\n".join(f"volumes.{line}" for line in text.strip().splitlines())
