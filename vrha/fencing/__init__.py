"""Signed datagrams between watchers and leaders. Standard library only: the watcher lives on it."""
