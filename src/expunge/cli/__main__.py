"""`python -m expunge.cli`."""

from expunge.cli.app import app

app()
