"""Podium: retrieve, reason, rerank with language models."""
