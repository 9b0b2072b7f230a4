"""`python -m slmx` is the same as `slmx`."""

from slmx.app import main

main()
