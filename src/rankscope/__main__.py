"""``python -m rankscope`` is the command ``rankscope``."""

from rankscope.cli import main

main()
