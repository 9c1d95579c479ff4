"""Reliability: runs that are killed, and topologies that must agree."""
