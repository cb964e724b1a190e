"""Measurements and pictures of what operators see; the tools in tools/visualization show them."""
