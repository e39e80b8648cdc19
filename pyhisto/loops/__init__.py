"""Loops over pixels and outlines that numpy can only do in many passes over memory, compiled."""
