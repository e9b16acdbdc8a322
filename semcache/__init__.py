"""semcache: a local LLM daemon with a semantic KV cache."""

__version__ = "0.1.0"
