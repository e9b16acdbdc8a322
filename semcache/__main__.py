"""`python -m semcache` is the command `semcache`."""

from semcache.cli.main import run

run()
