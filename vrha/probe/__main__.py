"""`python -m vrha.probe` is `ping-gap`."""

from vrha.probe.cli import main

main()
