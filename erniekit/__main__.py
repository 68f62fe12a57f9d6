"""`python -m erniekit`: the same as the `erniekit` command."""

from erniekit.cli.main import main

main()
