"""Scores fills: metrics, distances of sets, protocols, reports."""
