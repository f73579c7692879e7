"""The subcommands of `edgerec`, by what they work on; cli.py puts them together."""
