"""`python -m merganser` is the command `merganser`."""

from merganser.cli import main

main()
