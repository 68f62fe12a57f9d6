"""Metrics of answers: functions from an answer and its reference to a number from 0 to 1."""
