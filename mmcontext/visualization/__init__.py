"""Measurements and figures of what operators see, for the tools in tools/visualization."""
