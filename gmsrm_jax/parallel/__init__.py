"""Devices and processes: back end, mesh and shardings, several hosts, SIGTERM."""
