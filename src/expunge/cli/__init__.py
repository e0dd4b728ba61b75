"""The command line: parses, calls the API, prints."""

from expunge.cli.app import app

__all__ = ["app"]
