"""Lottery tickets at scale: found, proven, moved and made small."""
