"""Decisions as pure functions: Algorithm 1 and schedules. No torch, no Trainer."""
